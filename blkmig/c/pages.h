/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A block on its way from a stream to a file as pages: splice() moves references, not bytes, and the one copy is the
 * file's own.
 *
 *     stream ──splice──► pipe, pipe ──splice──► file          only when all of the block is in the pipes
 *
 * Two pipes, because each holds 256 pieces, which is what everybody may have, and a block of 256 pages comes in some
 * more: a socket's segments do not end where pages do.
 */
#ifndef BLKMIG_PAGES_H
#define BLKMIG_PAGES_H

#include "stream.h"

enum { PAGES_PIPES = 2, PAGES_PIPE_NBYTES = 1 << 20 };

struct pages {
    int in[PAGES_PIPES], out[PAGES_PIPES];
    size_t held[PAGES_PIPES];
    int opened;                         /* how many of them; all or none after pages_open() */
    int from_tcp;                       /* what they hold came over TCP */
};

static int pages_held(const struct pages *pages)
{
    return pages->held[0] || pages->held[1];
}

static void pages_close(struct pages *pages)
{
    for (; pages->opened; pages->opened--) {
        close(pages->in[pages->opened - 1]);
        close(pages->out[pages->opened - 1]);
        pages->held[pages->opened - 1] = 0;
    }
}

/* Have the pipes: 1, or 0 where there are none of that size to be had. */
static int pages_open(struct pages *pages)
{
    int fds[2];

    while (pages->opened < PAGES_PIPES) {
        if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
            goto none;
        pages->out[pages->opened] = fds[0];
        pages->in[pages->opened] = fds[1];
        pages->held[pages->opened++] = 0;
        if (fcntl(fds[1], F_SETPIPE_SZ, PAGES_PIPE_NBYTES) < PAGES_PIPE_NBYTES)
            goto none;
    }
    return 1;

none:
    pages_close(pages);
    return 0;
}

/* Move n bytes of the stream into the pipes, which are empty. Returns the bytes moved: fewer than n when they come in
 * so many pieces that the pipes are full, or from something that cannot be spliced. */
static ssize_t pages_take(struct pages *pages, struct stream *s, size_t n)
{
    size_t done = 0;
    ssize_t got;
    int i = 0, ready = 0, napped = 0;

    pages->from_tcp = s->lowat != 0;
    while (done < n && i < PAGES_PIPES) {
        got = splice(s->fd, NULL, pages->in[i], NULL, n - done, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (got == 0)
            return stream_ended(s);
        if (got > 0) {
            pages->held[i] += got;
            done += got;
            s->position += got;
            s->useful += got;
            ready = napped = 0;
        } else if (errno == EAGAIN && (ready || pages->held[i] > PAGES_PIPE_NBYTES / 4 * 3)) {
            i++;                        /* there is something, and it does not fit; or the rest fits the next one */
            ready = 0;
        } else if (errno == EAGAIN && s->naps && !napped) {
            stream_nap(s);
            napped = 1;
        } else if (errno == EAGAIN) {
            stream_lowat(s, n - done);
            if ((ready = stream_wait(s, POLLIN)) < 0)
                return -1;
        } else if (errno == EINVAL) {
            break;
        } else if (io_again() < 0) {
            return -1;
        }
    }
    stream_lowat(s, 1);
    s->lingers = 1;
    return done;
}

/* Empty the pipes into memory at p; the bytes. They are there, so nothing of this waits, and what fails is a fault. */
static ssize_t pages_read(struct pages *pages, uint8_t *p)
{
    size_t done = 0;
    ssize_t got;
    int i;

    for (i = 0; i < pages->opened; i++) {
        while (pages->held[i]) {
            got = read(pages->out[i], p + done, pages->held[i]);
            if (got == 0 || (got < 0 && io_again() < 0))
                return got == 0 ? io_fail(EIO) : -1;
            pages->held[i] -= got > 0 ? got : 0;
            done += got > 0 ? got : 0;
        }
    }
    return done;
}

/* Empty the pipes into the file at `offset`; the bytes, fewer than the pipes hold if the file cannot take pages. */
static ssize_t pages_splice(struct pages *pages, int fd, int64_t offset)
{
    loff_t to = offset;
    ssize_t put;
    int i;

    for (i = 0; i < pages->opened; i++) {
        while (pages->held[i]) {
            put = splice(pages->out[i], NULL, fd, &to, pages->held[i], SPLICE_F_MOVE);
            if (put < 0 && errno == EINVAL)
                return to - offset;
            if (put == 0 || (put < 0 && io_again() < 0))
                return put == 0 ? io_fail(EIO) : -1;
            pages->held[i] -= put > 0 ? put : 0;
        }
    }
    return to - offset;
}

/* Empty the pipes, which hold n bytes, into the file at `offset`, zero clusters as holes; the bytes written. `scratch` has
 * room for n bytes. What the file does not take as pages is written. Nobody has looked at the bytes: see io_has_zeros(). */
static ssize_t pages_store(struct pages *pages, int fd, size_t n, int64_t offset, size_t cluster, int allocate,
                           uint8_t *scratch)
{
    ssize_t done;
    int zeros;

    if (allocate)
        io_allocate(fd, n, offset);
    done = pages_splice(pages, fd, offset);
    if (done < 0)
        return -1;
    if ((size_t)done < n && (pages_read(pages, scratch) < 0 || io_pwrite(fd, scratch, n - done, offset + done) < 0))
        return -1;
    zeros = io_has_zeros(fd, n, offset);
    return zeros > 0 ? io_store_sparse(fd, NULL, n, offset, cluster, 1, 0, scratch) : zeros < 0 ? -1 : (ssize_t)n;
}

#endif
