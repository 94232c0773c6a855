/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A block's payload as pages, on its way from a stream to a file: splice() moves references, not bytes, and the one copy
 * is the file's own.
 *
 *     stream ──splice──► pipe, pipe ──splice──► file          only when all of the block is in the pipes
 *       stream_pipes.h                     pipes_store.h
 *
 * Two pipes, because a pipe of the size that everybody may have holds 256 pieces, and a block of 256 pages comes in some
 * more: a socket's segments do not end where pages do.
 */
#ifndef BLKMIG_PIPES_H
#define BLKMIG_PIPES_H

#include "fail.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

enum { PIPES = 2, PIPE_NBYTES = 1 << 20 };

struct pipes {
    int in[PIPES], out[PIPES];
    size_t held[PIPES];
    int opened;                         /* how many of them; all or none after pipes_open() */
    int from_tcp;                       /* what they hold came over TCP */
};

static int pipes_held(const struct pipes *pipes)
{
    return pipes->held[0] || pipes->held[1];
}

static void pipes_close(struct pipes *pipes)
{
    for (; pipes->opened; pipes->opened--) {
        close(pipes->in[pipes->opened - 1]);
        close(pipes->out[pipes->opened - 1]);
        pipes->held[pipes->opened - 1] = 0;
    }
}

/* With the GIL; none of them is open yet. */
static struct pipes *pipes_new(void)
{
    struct pipes *pipes = calloc(1, sizeof(*pipes));

    if (pipes == NULL)
        PyErr_NoMemory();
    return pipes;
}

static void pipes_free(struct pipes *pipes)
{
    if (pipes)
        pipes_close(pipes);
    free(pipes);
}

/* Have the pipes: 1, or 0 where there are none of that size to be had. */
static int pipes_open(struct pipes *pipes)
{
    int fds[2];

    while (pipes->opened < PIPES) {
        if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
            goto none;
        pipes->out[pipes->opened] = fds[0];
        pipes->in[pipes->opened] = fds[1];
        pipes->held[pipes->opened++] = 0;
        if (fcntl(fds[1], F_SETPIPE_SZ, PIPE_NBYTES) < PIPE_NBYTES)
            goto none;
    }
    return 1;

none:
    pipes_close(pipes);
    return 0;
}

/* Empty the pipes into memory at p; the bytes. They are there, so nothing of this waits, and what fails is a fault. */
static ssize_t pipes_read(struct pipes *pipes, uint8_t *p)
{
    size_t done = 0;
    ssize_t got;
    int i;

    for (i = 0; i < pipes->opened; i++) {
        while (pipes->held[i]) {
            got = read(pipes->out[i], p + done, pipes->held[i]);
            if (got == 0 || (got < 0 && io_again() < 0))
                return got == 0 ? io_fail(EIO) : -1;
            pipes->held[i] -= got > 0 ? got : 0;
            done += got > 0 ? got : 0;
        }
    }
    return done;
}

#endif
