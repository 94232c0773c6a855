/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A block stored with its zeros as holes: clusters that are all zero are skipped or punched, the others written.
 */
#ifndef BLKMIG_SPARSE_H
#define BLKMIG_SPARSE_H

#include "calls.h"
#include "zero.h"

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

/* Whether the file has only zeros in [offset, offset + n): its first bytes tell most data. -1 after an error. */
static int io_is_zero(int fd, uint8_t *scratch, size_t n, int64_t offset)
{
    size_t probe = n < 64 ? n : 64;
    ssize_t got = io_pread(fd, scratch, probe, offset);

    if (got > 0 && zero_run(zero_chosen, scratch, got))
        got = io_pread(fd, scratch, n, offset);
    return got < 0 ? -1 : zero_run(zero_chosen, scratch, got);
}

/* Whether one of so many `places` of [offset, offset + n), equally far apart, is zero in the file; -1 after an error. */
static int io_has_zeros(int fd, size_t n, int64_t offset, size_t places)
{
    uint8_t place[64];
    size_t at;
    ssize_t got = 0;

    for (at = 0; places && at + sizeof(place) <= n && got >= 0; at += n / places) {
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

#endif
