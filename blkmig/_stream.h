/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One direction of a byte stream, with a staging buffer in front of the fd:
 *
 *     staging  |......|===== staged =====|............|
 *              0      head               tail         capacity
 *
 * Writing: `position` counts what was put, `flushed` what the kernel took; what is staged is the difference.
 * Reading: `position` counts what was consumed.
 * Errors are as in _io.h; any wait ends with ECANCELED when `wake_fd` is readable.
 */
#ifndef BLKMIG_STREAM_H
#define BLKMIG_STREAM_H

#include <endian.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "_io.h"

enum {
    STREAM_CAPACITY_MIN = 512,          /* holds any record's head */
    /* What is read behind a payload: the next heads, in the same call, and no more, since it is copied once more.
     * 16, 64 and 512 measure the same; MSG_WAITALL instead of taking what is there loses a tenth. */
    STREAM_READ_AHEAD = 512,
    STREAM_WORDS = 65536,
};

enum stream_kind { STREAM_SOCKET, STREAM_PIPE, STREAM_FILE };

struct stream {
    int fd, wake_fd, kind;
    uint8_t *staging;
    size_t capacity, head, tail;
    uint64_t position, flushed;
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
    *s = (struct stream){.fd = fd, .wake_fd = wake_fd, .capacity = capacity, .staging = malloc(capacity)};
    s->kind = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? STREAM_FILE : STREAM_PIPE;
    if (S_ISSOCK(st.st_mode))
        s->kind = STREAM_SOCKET;
    if (s->staging == NULL)
        PyErr_NoMemory();
    return s->staging == NULL ? -1 : 0;
}

/* Wait until the fd is ready or broken. */
static int stream_wait(const struct stream *s, short events)
{
    struct pollfd fds[2] = {{s->fd, events, 0}, {s->wake_fd, POLLIN, 0}};

    if (poll(fds, 2, -1) < 0)
        return io_again();
    return fds[1].revents ? io_fail(ECANCELED) : 0;
}

/* ---- writing ---- */

/* writev() whose broken pipe is EPIPE and never SIGPIPE, whatever the process does with that signal: it is held back in
 * this thread, and taken away if this call was what raised it. */
static ssize_t stream_writev_pipe(int fd, const struct iovec *iov, int n)
{
    static const struct timespec now = {0, 0};
    sigset_t sigpipe, pending, old;
    ssize_t put;
    int error, was_pending;

    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &sigpipe, &old);
    sigpending(&pending);
    was_pending = sigismember(&pending, SIGPIPE);
    put = writev(fd, iov, n);
    error = errno;
    if (put < 0 && error == EPIPE && !was_pending)
        while (sigtimedwait(&sigpipe, NULL, &now) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    errno = error;
    return put;
}

static ssize_t stream_writev(const struct stream *s, struct iovec *iov, int n)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};

    if (s->kind == STREAM_SOCKET)
        return sendmsg(s->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    return s->kind == STREAM_PIPE ? stream_writev_pipe(s->fd, iov, n) : writev(s->fd, iov, n);
}

static inline void stream_staged(struct stream *s, size_t n)
{
    s->tail += n;
    s->position += n;
}

/* Send what is staged and then the last *left bytes before `end`. 0 when all is gone; EFAULT, without an exception,
 * when the memory could not be read: *left bytes are not sent then. */
static int stream_send(struct stream *s, const uint8_t *end, size_t *left)
{
    size_t staged;
    ssize_t put;

    while ((staged = s->tail - s->head) || *left) {
        struct iovec iov[2] = {{s->staging + s->head, staged}, {(void *)(end - *left), *left}};
        put = stream_writev(s, iov, *left ? 2 : 1);
        if (put < 0) {
            if (errno == EFAULT)
                return EFAULT;
            if ((errno == EAGAIN ? stream_wait(s, POLLOUT) : io_again()) < 0)
                return -1;
            continue;
        }
        s->flushed += put;
        staged = (size_t)put < staged ? (size_t)put : staged;
        s->head += staged;
        *left -= put - staged;
    }
    s->head = s->tail = 0;
    return 0;
}

/* ---- reading ---- */

static inline void stream_consume(struct stream *s, size_t n)
{
    s->head += n;
    s->position += n;
    if (s->head == s->tail)
        s->head = s->tail = 0;
}

/* Read once: up to n bytes to p, and then up to `room` behind what is staged. Returns the bytes at p. */
static ssize_t stream_read(struct stream *s, uint8_t *p, size_t n, size_t room)
{
    struct iovec iov[2] = {{p, n}, {s->staging + s->tail, room}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    PyGILState_STATE gil;
    ssize_t got;

    for (;;) {
        if (s->kind == STREAM_PIPE && stream_wait(s, POLLIN) < 0)       /* the fd may be a blocking one */
            return -1;
        got = s->kind == STREAM_SOCKET ? recvmsg(s->fd, &msg, MSG_DONTWAIT) : readv(s->fd, iov, 2);
        if (got >= 0)
            break;
        if ((errno == EAGAIN ? stream_wait(s, POLLIN) : io_again()) < 0)
            return -1;
    }
    if (got == 0) {
        gil = PyGILState_Ensure();
        PyErr_Format(PyExc_EOFError, "the stream ends at byte %llu, inside an item",
                     (unsigned long long)(s->position + s->tail - s->head));
        PyGILState_Release(gil);
        return -1;
    }
    if ((size_t)got <= n)
        return got;
    s->tail += got - n;
    return n;
}

/* Have at least n bytes staged, n <= capacity. */
static int stream_require(struct stream *s, size_t n)
{
    if (n > s->capacity - s->head) {
        memmove(s->staging, s->staging + s->head, s->tail - s->head);
        s->tail -= s->head;
        s->head = 0;
    }
    while (s->tail - s->head < n)
        if (stream_read(s, NULL, 0, s->capacity - s->tail) < 0)
            return -1;
    return 0;
}

/* As stream_require(), called with the GIL, which is dropped while reading. */
static int stream_need(struct stream *s, size_t n)
{
    int rc = 0;

    if (n > s->tail - s->head) {
        Py_BEGIN_ALLOW_THREADS
        rc = stream_require(s, n);
        Py_END_ALLOW_THREADS
    }
    return rc;
}

/* Drop n bytes. With the GIL. */
static int stream_skip(struct stream *s, uint64_t n)
{
    size_t staged;

    for (; n; n -= staged) {
        if (stream_need(s, 1) < 0)
            return -1;
        staged = n < s->tail - s->head ? n : s->tail - s->head;
        stream_consume(s, staged);
    }
    return 0;
}

/* Consume words that are `a` or `b` under `mask`, each with the bytes behind it, and the first other word, which is
 * returned. With the GIL. After STREAM_WORDS the next word is returned whatever it is: a caller hears its signals. */
static uint64_t stream_skip_words(struct stream *s, uint64_t mask, uint64_t a, uint64_t a_nbytes, uint64_t b,
                                  uint64_t b_nbytes)
{
    uint64_t word;
    int i;

    for (i = 0; stream_need(s, sizeof(word)) == 0; i++) {
        memcpy(&word, s->staging + s->head, sizeof(word));
        word = be64toh(word);
        stream_consume(s, sizeof(word));
        if (((word & mask) != a && (word & mask) != b) || i == STREAM_WORDS)
            return word;
        if (stream_skip(s, (word & mask) == a ? a_nbytes : b_nbytes) < 0)
            break;
    }
    return 0;
}

/* Consume n bytes into p: what is staged is copied, the rest is read in place. */
static int stream_take(struct stream *s, uint8_t *p, size_t n)
{
    size_t done = n < s->tail - s->head ? n : s->tail - s->head;
    ssize_t got;

    memcpy(p, s->staging + s->head, done);
    stream_consume(s, done);
    for (; done < n; done += got) {     /* nothing is staged before the last of these reads */
        got = stream_read(s, p + done, n - done, STREAM_READ_AHEAD);
        if (got < 0)
            return -1;
        s->position += got;
    }
    return 0;
}

#endif
