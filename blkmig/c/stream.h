/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One direction of a byte stream, with a staging buffer in front of the fd:
 *
 *     staging  |......|===== staged =====|............|
 *              0      head               tail         capacity
 *
 * Writing (stream_send.h): `position` counts what was put, `flushed` what the kernel took; what is staged is the difference.
 * Reading (stream_read.h): `position` counts what was consumed. What is staged may be in the socket, too, while nobody
 * knows whether it is the beginning of a payload, which is not to be staged: see stream_unstage().
 *
 * What is here is how both wait. Errors are as in fail.h; any wait ends with ECANCELED when `wake_fd` is readable, with
 * ETIME when the other side was idle for too long, and with EPROTO when it only chatters: see stream_wait().
 */
#ifndef BLKMIG_STREAM_H
#define BLKMIG_STREAM_H

#include "fail.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "clock.h"
#include "fork.h"

enum { STREAM_CAPACITY_MIN = 512 };     /* holds any record's head */

enum { STREAM_NOTHING = -2 };           /* nothing has come that can be opened: wait for the fd */

enum { STREAM_SEAL_NBYTES = 1 << 15 };  /* more than what a record that has come in part may lack */

enum stream_kind { STREAM_SOCKET, STREAM_PIPE, STREAM_FILE };

struct stream {
    int busy;                           /* a thread is in it without the GIL; under the GIL */
    unsigned born;                      /* in which process: see fork.h */
    int fd, wake_fd, kind, takes_pages, is_fifo;
    uint8_t *staging;
    size_t capacity, head, tail;
    uint64_t position, flushed;

    /* Said by the owner, before the first byte or between two of them. */
    size_t read_ahead;                  /* behind a payload, stage so many bytes of what follows in the same call */
    size_t most_lowat;                  /* of a TCP socket: the most that SO_RCVLOWAT is set to; 0: leave it alone */
    size_t linger_nbytes;               /* behind a payload, so many bytes of the next one get ... */
    struct timespec linger;             /* ... so much time to arrive before we wait for them */
    int naps;                           /* let payloads come without being seen to wait: see stream_nap() */
    double idle, first;                 /* seconds without payload, and those until the first byte; 0: for ever */
    uint64_t least_useful;              /* bytes; less payload than this in an idle time counts as none */
    uint64_t most_chatter;              /* bytes; more than this without any payload is too much; 0: nothing is */

    /* Where what comes out of the fd is sealed, as by TLS: who opens it, up to n bytes to p, as `many` records as fit, or one.
     * Returns the bytes, 0 at the end, -1 with an exception, or STREAM_NOTHING. Needs no GIL. */
    ssize_t (*unseal)(void *owner, uint8_t *p, size_t n, int many);
    void *owner;

    /* Reading. */
    size_t lowat;                       /* SO_RCVLOWAT as it is now */
    int lingers;                        /* what came last was a long payload */
    size_t ahead;                       /* stage no more than this, since what follows must not be staged; 0: any */
    int peeks;                          /* leave what is staged in the socket, too, where it is TCP */
    size_t peeked;                      /* bytes at the end of what is staged that are in the socket, too */

    /* How long the other side was waited for without payload; looked at only when somebody waits. */
    double waited;                      /* seconds of all waits since the last payload */
    uint64_t useful, renewed, renewed_at;   /* payload in all, that at the last payload, and the position there */
    int queued;                         /* bytes that the socket held when it was last looked at; -1: not yet */
};

/* With the GIL. A pipe is whatever may make the caller wait and is no socket. */
static int stream_init(struct stream *s, int fd, Py_ssize_t capacity, int wake_fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return io_fail(errno);
    if (capacity < STREAM_CAPACITY_MIN) {
        PyErr_Format(PyExc_ValueError, "a staging buffer needs at least %d bytes, not %zd",
                     STREAM_CAPACITY_MIN, capacity);
        return -1;
    }
    *s = (struct stream){.fd = fd, .wake_fd = wake_fd, .capacity = capacity, .born = fork_count,
                         .staging = malloc(capacity), .lowat = 1, .least_useful = 1, .queued = -1};
    s->kind = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? STREAM_FILE : STREAM_PIPE;
    if (S_ISSOCK(st.st_mode))
        s->kind = STREAM_SOCKET;
    /* sendfile() and splice() have no flag that keeps them from blocking, so the fd must be a non-blocking one. */
    s->is_fifo = S_ISFIFO(st.st_mode);
    s->takes_pages = s->kind != STREAM_FILE && fcntl(fd, F_GETFL) & O_NONBLOCK;
    if (s->staging == NULL)
        PyErr_NoMemory();
    return s->staging == NULL ? -1 : 0;
}

/* With the GIL, before anything is done to the stream: whether it is this thread's to use. Whoever drops the GIL then says
 * that it is busy, and says so no more when it has the GIL again. */
static inline int stream_check(const struct stream *s)
{
    if (!s->busy && s->born == fork_count)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, s->busy ? "the stream is in use in another thread: one at a time"
                                                : "the stream is the parent process's: this is a fork's child");
    return -1;
}

/* Begin a new idle time if payload has come, or was taken, since the last one began: whether it has. */
static int stream_renew(struct stream *s)
{
    if (s->useful - s->renewed < s->least_useful)
        return 0;
    s->renewed = s->useful;
    s->renewed_at = s->position;
    s->waited = 0;
    s->queued = -1;
    return 1;
}

/* The same for what a socket has of ours: a large buffer takes nothing for minutes while a slow link empties it. */
static void stream_look_at_queue(struct stream *s)
{
    int queued = 0;

    if (s->kind != STREAM_SOCKET || ioctl(s->fd, SIOCOUTQ, &queued) < 0)
        return;
    if (s->queued >= 0 && s->queued - queued >= (int)s->least_useful)
        s->waited = 0;
    if (s->queued < 0 || s->waited == 0)
        s->queued = queued;
}

/* Wait until the fd is ready or broken: 1, or 0 when the caller is to try again. Only time that is spent here counts as
 * idle: not what our own disks take between two waits. */
static int stream_wait(struct stream *s, short events)
{
    struct pollfd fds[2] = {{s->fd, events, 0}, {s->wake_fd, POLLIN, 0}};
    double limit = s->position + s->tail ? s->idle : s->first, left, started = 0;
    int ready, ms = -1;

    if (limit > 0) {
        stream_renew(s);
        left = limit - s->waited < limit / 4 ? limit - s->waited : limit / 4;
        ms = left > 0 ? (int)(left * 1000) + 1 : 0;
        started = io_seconds();
    }
    ready = poll(fds, 2, ms);
    if (limit > 0)
        s->waited += io_seconds() - started;
    if (ready < 0)
        return io_again();
    if (fds[1].revents)
        return io_fail(ECANCELED);
    if (ready)
        return 1;
    if (events & POLLOUT)
        stream_look_at_queue(s);
    return s->waited < limit ? 0 : io_fail(ETIME);
}

/* Break a TCP connection at once, for the peer and for every process that has it: the peer sees a reset, no end. */
static int stream_break(int fd)
{
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};

    return connect(fd, &nowhere, sizeof(nowhere)) < 0 ? io_fail(errno) : 0;
}

#endif
