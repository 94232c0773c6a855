/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory in whole pages: a file's, mapped and sent from where they are, and a block's own.
 */
#ifndef BLKMIG_MAPPING_H
#define BLKMIG_MAPPING_H

#include "fail.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ              /* Linux 5.14, glibc 2.35 */
#define MADV_POPULATE_READ 22
#endif

/* Make the pages of [p, p + n) present without touching them: whether they all are. A fault would be a SIGBUS. */
static int io_populate(uint8_t *p, size_t n)
{
    size_t slack = (uintptr_t)p & (uintptr_t)(sysconf(_SC_PAGESIZE) - 1);

    return madvise(p - slack, n + slack, MADV_POPULATE_READ) == 0;
}

/* Give back the pages of [p, p + n), and those that it shares with its neighbours: else all that was ever sent counts as
 * this process's memory. Whoever touches them again gets them from the page cache. */
static void io_drop(const uint8_t *p, size_t n)
{
    size_t slack = (uintptr_t)p & (uintptr_t)(sysconf(_SC_PAGESIZE) - 1);

    madvise((void *)(p - slack), n + slack, MADV_DONTNEED);
}

/* Map the first n bytes. *own is a second fd of the file, for reading what the mapping no longer shows. */
static uint8_t *io_map(int fd, size_t n, int *own)
{
    void *base = MAP_FAILED;

    *own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (*own >= 0)
        base = mmap(NULL, n, PROT_READ, MAP_SHARED, *own, 0);
    if (base != MAP_FAILED)
        return base;
    io_fail(errno);
    if (*own >= 0)
        close(*own);
    return NULL;
}

static void io_unmap(uint8_t *base, size_t n, int own)
{
    if (base == NULL)
        return;
    munmap(base, n);
    if (own >= 0)
        close(own);
}

/* Zeroed and resident memory, page aligned, for free(). */
static uint8_t *io_alloc_pages(size_t n)
{
    void *p;

    if (posix_memalign(&p, sysconf(_SC_PAGESIZE), n) == 0)
        return memset(p, 0, n);
    PyErr_NoMemory();
    return NULL;
}

/*
 * Memory whose pages may be given to a pipe, which keeps them until they are read: two blocks in one huge page. Zeroing a
 * huge page is a tenth of what a fault for each small one takes, so it is given away as a whole, too: the pages of
 * both halves are dropped when the second was used, and who touches them next gets new ones.
 */
enum { IO_GIFTS_NBYTES = 2 << 20 };

static uint8_t *io_alloc_gifts(void)
{
    uint8_t *base = mmap(NULL, 2 * IO_GIFTS_NBYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t before = -(uintptr_t)base & (IO_GIFTS_NBYTES - 1);

    if (base == MAP_FAILED) {
        PyErr_NoMemory();
        return NULL;
    }
    if (before)
        munmap(base, before);
    munmap(base + before + IO_GIFTS_NBYTES, IO_GIFTS_NBYTES - before);
    madvise(base + before, IO_GIFTS_NBYTES, MADV_HUGEPAGE);     /* where there are none, small ones do */
    return base + before;
}

/* With the GIL. After an error there is no memory there: nobody may touch it before another call has succeeded. */
static int io_renew_gifts(uint8_t *base)
{
    if (madvise(base, IO_GIFTS_NBYTES, MADV_DONTNEED) == 0)
        return 0;
    /* Pages that are locked in memory stay; a new mapping takes their place. */
    if (mmap(base, IO_GIFTS_NBYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        return io_fail(errno);
    madvise(base, IO_GIFTS_NBYTES, MADV_HUGEPAGE);
    return 0;
}

static void io_free_gifts(uint8_t *base)
{
    if (base)
        munmap(base, IO_GIFTS_NBYTES);
}

#endif
