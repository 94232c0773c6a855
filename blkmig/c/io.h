/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * System calls on files, gone on with until done.
 *
 * All run without the GIL.  They go on after short counts and after EINTR, when Python's signal handlers have run, and
 * return -1 with a Python exception set, as Cython's `except -1 nogil` wants it.
 */
#ifndef BLKMIG_IO_H
#define BLKMIG_IO_H

#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "zero.h"

#ifndef MADV_POPULATE_READ              /* Linux 5.14, glibc 2.35 */
#define MADV_POPULATE_READ 22
#endif

static int io_fail(int error)
{
    PyGILState_STATE gil = PyGILState_Ensure();

    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    PyGILState_Release(gil);
    return -1;
}

/* After a call has failed: 0 if it was only interrupted. */
static int io_again(void)
{
    PyGILState_STATE gil;
    int rc;

    if (errno != EINTR)
        return io_fail(errno);
    gil = PyGILState_Ensure();
    rc = PyErr_CheckSignals();
    PyGILState_Release(gil);
    return rc;
}

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

static double io_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

/* ---- blocks ---- */

/* Punch [offset, offset + n): 1, or 0 where holes are not supported. */
static int io_punch(int fd, int64_t offset, size_t n)
{
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, n) < 0) {
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV || errno == EINVAL || errno == EPERM)
            return 0;
        if (io_again() < 0)
            return -1;
    }
    return 1;
}

enum { IO_PLACES_APART = 1 << 18 };    /* each look is a system call, 0.7 us */

/* Whether the file has only zeros in [offset, offset + n): its first bytes tell most data. -1 after an error. */
static int io_is_zero(int fd, uint8_t *scratch, size_t n, int64_t offset)
{
    size_t probe = n < 64 ? n : 64;
    ssize_t got = io_pread(fd, scratch, probe, offset);

    if (got > 0 && zero_run(zero_chosen, scratch, got))
        got = io_pread(fd, scratch, n, offset);
    return got < 0 ? -1 : zero_run(zero_chosen, scratch, got);
}

/* Whether one of a few places of [offset, offset + n) is zero in the file; -1 after an error. */
static int io_has_zeros(int fd, size_t n, int64_t offset)
{
    uint8_t place[64];
    size_t at;
    ssize_t got = 0;

    for (at = 0; at + sizeof(place) <= n && got >= 0; at += IO_PLACES_APART) {
        got = io_pread(fd, place, sizeof(place), offset + at);
        if (got > 0 && zero_run(zero_chosen, place, got))
            return 1;
    }
    return got < 0 ? -1 : 0;
}

/* Write the clusters of [p, p + n) that are not zero at `offset`; the bytes written. Clusters begin at multiples of
 * `cluster` in the file. Zero ones are skipped, or punched. Without p the file holds them already, and `scratch` has
 * room for n bytes: only punch. */
static ssize_t io_store_sparse(int fd, const uint8_t *p, size_t n, int64_t offset, size_t cluster, int punch,
                               int allocate, uint8_t *scratch)
{
    size_t start, stop, end, written = 0;
    int zero, also, done;

    /* Invariant: [0, start) is done; [start, stop) is one run of clusters, all of them zero or none. */
    for (start = 0; start < n; start = stop) {
        for (zero = -1, stop = start; stop < n; stop = end) {
            end = stop + cluster - (uint64_t)(offset + stop) % cluster;
            end = end < n ? end : n;
            also = p ? zero_run(zero_chosen, p + stop, end - stop) : io_is_zero(fd, scratch, end - stop, offset + stop);
            if (also < 0)
                return -1;
            if (zero >= 0 && also != zero)
                break;
            zero = also;
        }
        if (zero && !punch)
            continue;
        if (!zero && allocate)
            io_allocate(fd, stop - start, offset + start);
        done = zero ? io_punch(fd, offset + start, stop - start) : 0;
        if (done < 0 || (!done && p && io_pwrite(fd, p + start, stop - start, offset + start) < 0))
            return -1;
        written += done ? 0 : stop - start;
    }
    return written;
}

/* Make the pages of [p, p + n) present without touching them: whether they all are. A fault would be a SIGBUS. */
static int io_populate(uint8_t *p, size_t n)
{
    size_t slack = (uintptr_t)p & (uintptr_t)(sysconf(_SC_PAGESIZE) - 1);

    return madvise(p - slack, n + slack, MADV_POPULATE_READ) == 0;
}

/* Give the pages back, also those that [p, p + n) has a part of: else all that was ever sent counts as this process's
 * memory. Whoever touches them again gets them from the page cache. */
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

#endif
