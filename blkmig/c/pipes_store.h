/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A payload that is in pipes stored in a file: what the file does not take as pages is written.
 */
#ifndef BLKMIG_PIPES_STORE_H
#define BLKMIG_PIPES_STORE_H

#include "pipes.h"
#include "sparse.h"

/* Empty the pipes into the file at `offset`; the bytes, fewer than the pipes hold if the file cannot take pages. */
static ssize_t pipes_splice(struct pipes *pipes, int fd, int64_t offset)
{
    loff_t to = offset;
    ssize_t put;
    int i;

    for (i = 0; i < pipes->opened; i++) {
        while (pipes->held[i]) {
            put = splice(pipes->out[i], NULL, fd, &to, pipes->held[i], SPLICE_F_MOVE);
            if (put < 0 && errno == EINVAL)
                return to - offset;
            if (put == 0 || (put < 0 && io_again() < 0))
                return put == 0 ? io_fail(EIO) : -1;
            pipes->held[i] -= put > 0 ? put : 0;
        }
    }
    return to - offset;
}

/* Empty the pipes, which hold n bytes, into the file at `offset`, zero clusters as holes; the bytes written. `scratch` has
 * room for n bytes. Nobody has looked at the bytes: io_has_zeros() looks at so many `places` of them in the file. */
static ssize_t pipes_store(struct pipes *pipes, int fd, size_t n, int64_t offset, size_t cluster, int allocate,
                           size_t places, uint8_t *scratch)
{
    ssize_t done;
    int zeros;

    if (allocate)
        io_allocate(fd, n, offset);
    done = pipes_splice(pipes, fd, offset);
    if (done < 0)
        return -1;
    if ((size_t)done < n && (pipes_read(pipes, scratch) < 0 || io_pwrite(fd, scratch, n - done, offset + done) < 0))
        return -1;
    zeros = io_has_zeros(fd, n, offset, places);
    return zeros > 0 ? io_store_sparse(fd, NULL, n, offset, cluster, 1, 0, scratch) : zeros < 0 ? -1 : (ssize_t)n;
}

#endif
