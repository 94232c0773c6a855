/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is staged, and a payload behind it, sent.
 */
#ifndef BLKMIG_STREAM_SEND_H
#define BLKMIG_STREAM_SEND_H

#include "stream.h"

#include <signal.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <time.h>

#include "mapping.h"

static inline void stream_staged(struct stream *s, size_t n)
{
    s->tail += n;
    s->position += n;
}

static ssize_t stream_writev(const struct stream *s, struct iovec *iov, int n, int more)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};

    if (s->kind == STREAM_SOCKET)
        return sendmsg(s->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT | (more ? MSG_MORE : 0));
    return writev(s->fd, iov, n);
}

/* How a payload leaves: the pages of a file (its descriptor), or ... */
enum { STREAM_COPIES = -1, STREAM_GIVES = -2 };         /* ... a copy of it, or the pages that it stands in */

static ssize_t stream_send_pages(const struct stream *s, const uint8_t *p, int file, int64_t offset, size_t n)
{
    struct iovec iov = {(void *)p, n};
    off_t from = offset;

    if (file == STREAM_GIVES)
        return vmsplice(s->fd, &iov, 1, SPLICE_F_NONBLOCK);
    if (s->kind == STREAM_SOCKET)
        return sendfile(s->fd, file, &from, n);
    return splice(file, &from, s->fd, NULL, n, SPLICE_F_NONBLOCK);
}

/* A broken peer is EPIPE and never SIGPIPE, whatever the process does with that signal. Between these two calls the signal
 * is held back in this thread, and one that we raised is taken away. sendmsg() has a flag for that. */
struct stream_quiet {
    sigset_t old;
    int was_pending;
};

static void stream_hold_sigpipe(struct stream_quiet *quiet)
{
    sigset_t sigpipe, pending;

    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &sigpipe, &quiet->old);
    sigpending(&pending);
    quiet->was_pending = sigismember(&pending, SIGPIPE);
}

static void stream_release_sigpipe(const struct stream_quiet *quiet, int raised)
{
    static const struct timespec now = {0, 0};
    sigset_t sigpipe;
    int error = errno;

    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    if (raised && !quiet->was_pending)
        while (sigtimedwait(&sigpipe, NULL, &now) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &quiet->old, NULL);
    errno = error;
}

/* Send once: what is staged and the last `left` bytes before `end`, or, where these are not copied, first what is staged
 * and then pages: theirs, or those of a file up to `until`. */
static ssize_t stream_send_once(const struct stream *s, const uint8_t *end, size_t left, int file, int64_t until)
{
    size_t staged = s->tail - s->head;
    struct iovec iov[2] = {{s->staging + s->head, staged}, {(void *)(end - left), left}};

    if (file != STREAM_COPIES && !staged)
        return stream_send_pages(s, end - left, file, until - left, left);
    return stream_writev(s, iov, left && file == STREAM_COPIES ? 2 : 1, file != STREAM_COPIES);
}

/* Send what is staged and then the last *left bytes before `end`, or before `until` of the file. 0 when all is gone;
 * EFAULT, without an exception, when the memory or the file does not give these bytes: *left of them are not sent then. */
static int stream_send_quietly(struct stream *s, const uint8_t *end, size_t *left, int file, int64_t until)
{
    size_t staged;
    ssize_t put;

    while ((staged = s->tail - s->head) || *left) {
        put = stream_send_once(s, end, *left, file, until);
        if (put == 0 || (put < 0 && file >= 0 && !staged && (errno == EINVAL || errno == EIO)))
            return EFAULT;              /* the file was cut, cannot be read, or has no pages to give */
        if (put < 0) {
            if (errno == EFAULT)
                return EFAULT;
            if ((errno == EAGAIN ? stream_wait(s, POLLOUT) : io_again()) < 0)
                return -1;
            continue;
        }
        s->flushed += put;
        s->useful += put;
        staged = (size_t)put < staged ? (size_t)put : staged;
        s->head += staged;
        *left -= put - staged;
    }
    s->head = s->tail = 0;
    return 0;
}

/* The same without SIGPIPE. The pages of a `mapped` payload are dropped when all is gone. */
static int stream_send(struct stream *s, const uint8_t *end, size_t *left, int file, int64_t until, int mapped)
{
    int loud = s->kind != STREAM_SOCKET || file >= 0, error;
    struct stream_quiet quiet;
    size_t n = *left;

    if (loud)
        stream_hold_sigpipe(&quiet);
    error = stream_send_quietly(s, end, left, file, until);
    if (loud)
        stream_release_sigpipe(&quiet, error < 0);
    if (!error && mapped && file == STREAM_COPIES)
        io_drop(end - n, n);
    return error;
}

/* Send n bytes that stand, sealed, for what was put; whoever knows for how much of it counts that. */
static int stream_send_as_is(struct stream *s, const uint8_t *p, size_t n)
{
    struct iovec iov;
    ssize_t put;

    for (; n; p += put, n -= put) {
        iov = (struct iovec){(void *)p, n};
        while ((put = stream_writev(s, &iov, 1, 0)) < 0)
            if ((errno == EAGAIN ? stream_wait(s, POLLOUT) : io_again()) < 0)
                return -1;
        s->useful += put;
    }
    return 0;
}

#endif
