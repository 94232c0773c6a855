/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * System calls on files, gone on with until done: after short counts, and after EINTR, when Python's signal handlers have
 * run. They run without the GIL; errors are as in fail.h.
 */
#ifndef BLKMIG_CALLS_H
#define BLKMIG_CALLS_H

#include "fail.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

/* Read at `offset`; bytes read: n, or fewer at the end of the file. */
static ssize_t io_pread(int fd, uint8_t *p, size_t n, int64_t offset)
{
    size_t done = 0;
    ssize_t got;

    while (done < n) {
        struct iovec rest = {p + done, n - done};
        got = preadv(fd, &rest, 1, offset + done);
        if (got == 0)
            break;
        if (got > 0)
            done += got;
        else if (io_again() < 0)
            return -1;
    }
    return done;
}

static int io_pwrite(int fd, const uint8_t *p, size_t n, int64_t offset)
{
    size_t done = 0;
    ssize_t put;

    while (done < n) {
        struct iovec rest = {(void *)(p + done), n - done};
        put = pwritev(fd, &rest, 1, offset + done);
        if (put > 0)
            done += put;
        else if (put == 0) /* a file system that neither writes nor fails would be asked for ever */
            return io_fail(EIO);
        else if (io_again() < 0)
            return -1;
    }
    return 0;
}

/* Read n extents, pairs of an offset and a length, to p, one behind the other; zeros where the file has ended. *done counts
 * them: after an error it is the number of the one that cannot be read. */
static int io_pread_extents(int fd, uint8_t *p, const uint64_t *pairs, size_t n, size_t *done)
{
    ssize_t got;

    for (*done = 0; *done < n; (*done)++, pairs += 2) {
        got = io_pread(fd, p, pairs[1], pairs[0]);
        if (got < 0)
            return -1;
        memset(p + got, 0, pairs[1] - got);
        p += pairs[1];
    }
    return 0;
}

/* The reverse. */
static int io_pwrite_extents(int fd, const uint8_t *p, const uint64_t *pairs, size_t n, size_t *done)
{
    for (*done = 0; *done < n; (*done)++, pairs += 2) {
        if (io_pwrite(fd, p, pairs[1], pairs[0]) < 0)
            return -1;
        p += pairs[1];
    }
    return 0;
}

static int io_fallocate(int fd, int mode, int64_t offset, int64_t n)
{
    while (fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, offset, n) < 0)
        if (io_again() < 0)
            return -1;
    return 0;
}

/* Have the file's space allocated before it is written: ext4 then need not reserve it page by page, which takes a quarter
 * of the time that a write to a hole does. Only a favour: what cannot be had is the write's error. */
static void io_allocate(int fd, size_t n, int64_t offset)
{
    int error = errno;

    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, n) < 0)
        errno = error;
}

static int io_zero_out(int fd, uint64_t offset, uint64_t n)
{
    uint64_t range[2] = {offset, n};

    while (ioctl(fd, BLKZEROOUT, range) < 0)
        if (io_again() < 0)
            return -1;
    return 0;
}

static int io_start_writeback(int fd)
{
    while (sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE) < 0)
        if (io_again() < 0)
            return -1;
    return 0;
}

/* Find [*start, *end), the next data in [offset, size): 1, or 0 if there is none. What cannot tell is data. */
static int io_next_data(int fd, int64_t offset, int64_t size, int64_t *start, int64_t *end)
{
    *start = lseek(fd, offset, SEEK_DATA);
    *end = *start < 0 ? -1 : lseek(fd, *start, SEEK_HOLE);
    if (*end < 0 && errno == ENXIO)
        return 0;
    if (*end < 0 && errno != EINVAL && errno != EOPNOTSUPP)
        return io_fail(errno);
    if (*start < offset || *end <= *start) {    /* not supported, or a device that answers anything with 0 */
        *start = offset;
        *end = size;
    }
    *end = *end < size ? *end : size;
    return *start < size;
}

#endif
