/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A payload taken out of a stream as pages, into the pipes of a block.
 */
#ifndef BLKMIG_STREAM_PIPES_H
#define BLKMIG_STREAM_PIPES_H

#include "pipes.h"
#include "stream_read.h"

/* Move n bytes of the stream into the pipes, which are empty. Returns the bytes moved: fewer than n when they come in
 * so many pieces that the pipes are full, or from something that cannot be spliced. */
static ssize_t pipes_take(struct pipes *pipes, struct stream *s, size_t n)
{
    size_t done = 0;
    ssize_t got;
    int i = 0, ready = 0, napped = 0;

    pipes->from_tcp = s->most_lowat != 0;
    while (done < n && i < PIPES) {
        got = splice(s->fd, NULL, pipes->in[i], NULL, n - done, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (got == 0)
            return stream_ended(s);
        if (got > 0) {
            pipes->held[i] += got;
            done += got;
            s->position += got;
            s->useful += got;
            ready = napped = 0;
        } else if (errno == EAGAIN && (ready || pipes->held[i] > PIPE_NBYTES / 4 * 3)) {
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

#endif
