/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Preloaded into every side of a comparison in the page cache: no side waits for the disk or starts writeback.
 *
 * Some of the programs flush at the end and some do not; without this they would not do the same work, and with a flush
 * everywhere the disk would be measured and nothing else. (The "flushed" group measures with it.) */
#define _GNU_SOURCE
#include <fcntl.h>

#define NO_OP(name, ...) int name(__VA_ARGS__) { return 0; }

#pragma GCC diagnostic ignored "-Wunused-parameter"
NO_OP(fsync, int fd)
NO_OP(fdatasync, int fd)
NO_OP(syncfs, int fd)
NO_OP(sync_file_range, int fd, off64_t offset, off64_t nbytes, unsigned flags)
NO_OP(msync, void *start, unsigned long length, int flags)
