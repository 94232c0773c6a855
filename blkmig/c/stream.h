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

#include "clock.h"
#include "fork.h"

enum {
    STREAM_CAPACITY_MIN = 512,          /* holds any record's head */
    /* What is read behind a payload: the next heads, in the same call, and no more, since it is copied once more.
     * 16, 64 and 512 measure the same. */
    STREAM_READ_AHEAD = 512,
    STREAM_LOWAT = 1 << 20,             /* a block; the kernel takes less where its buffers are smaller */
    STREAM_LINGER_NBYTES = 1 << 18,     /* is there within 0.1 ms on one machine, ... */
    STREAM_LINGER_NS = 200000,          /* ... and on a slower link this moment is lost once a block */
    STREAM_WORDS = 65536,
    STREAM_USEFUL = 4096,               /* so much payload within an idle time-out is a side that lives: 70 B/s of 60 s */
    STREAM_CHATTER = 4 << 20,           /* so much without any is none: 100,000 empty sections, or more */
};

static const struct timespec stream_moment = {0, STREAM_LINGER_NS};

enum stream_kind { STREAM_SOCKET, STREAM_PIPE, STREAM_FILE };

struct stream {
    int busy;                           /* a thread is in it without the GIL; under the GIL */
    unsigned born;                      /* in which process: see fork.h */
    int fd, wake_fd, kind, takes_pages;
    int lowat;                          /* SO_RCVLOWAT of a TCP socket as it is now; 0: not for this stream */
    int naps;                           /* the sender is on this machine, over TCP: see stream_nap() */
    uint8_t *staging;
    size_t capacity, head, tail;
    int lingers;                        /* a payload was the last that came */
    size_t ahead;                       /* stage no more than this, since what follows must not be staged; 0: any */
    int peeks;                          /* leave what is staged in the socket, too, where it is TCP */
    size_t peeked;                      /* so much of it is there: the last that is staged */
    uint64_t position, flushed;
    /* How long the other side may be waited for without payload; looked at only when somebody waits. */
    double idle, first;                 /* seconds, and those until the first byte; 0: for ever */
    double waited;                      /* seconds that all waits since the last payload took */
    uint64_t useful, renewed, renewed_at;   /* payload in all, that at the last payload, and the position there */
    int queued;                         /* bytes that the socket held when it was last looked at; -1: not yet */
};

static int stream_is_tcp(const struct stream *s)
{
    int domain = -1;
    socklen_t length = sizeof(domain);

    getsockopt(s->fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    return domain == AF_INET || domain == AF_INET6;
}

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
    *s = (struct stream){.fd = fd, .wake_fd = wake_fd, .capacity = capacity, .born = fork_count, .staging = malloc(capacity),
                         .queued = -1};
    s->kind = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? STREAM_FILE : STREAM_PIPE;
    if (S_ISSOCK(st.st_mode))
        s->kind = STREAM_SOCKET;
    s->lowat = stream_is_tcp(s);
    /* sendfile() and splice() have no flag that keeps them from blocking, so the fd must be a non-blocking one. */
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

/* Expect payloads that are pages, from this machine; whether they can be had as such. */
static int stream_expect_pages(struct stream *s)
{
    s->naps = s->lowat != 0;
    return s->takes_pages;
}

/* Begin a new idle time if payload has come, or was taken, since the last one began: whether it has. */
static int stream_renew(struct stream *s)
{
    if (s->useful - s->renewed < STREAM_USEFUL)
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
    if (s->queued >= 0 && s->queued - queued >= STREAM_USEFUL)
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
