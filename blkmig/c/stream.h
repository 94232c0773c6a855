/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One direction of a byte stream, with a staging buffer in front of the fd:
 *
 *     staging  |......|===== staged =====|............|
 *              0      head               tail         capacity
 *
 * Writing: `position` counts what was put, `flushed` what the kernel took; what is staged is the difference.
 * Reading: `position` counts what was consumed. What is staged may be in the socket, too, while nobody knows whether it
 * is the beginning of a payload, which is not to be staged: see stream_unstage().
 * Errors are as in io.h; any wait ends with ECANCELED when `wake_fd` is readable, with ETIME when the other side was idle
 * for too long, and with EPROTO when it only chatters: see stream_wait().
 */
#ifndef BLKMIG_STREAM_H
#define BLKMIG_STREAM_H

#include <endian.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "fork.h"
#include "io.h"

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

/* ---- writing ---- */

static ssize_t stream_writev(const struct stream *s, struct iovec *iov, int n, int more)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};

    if (s->kind == STREAM_SOCKET)
        return sendmsg(s->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT | (more ? MSG_MORE : 0));
    return writev(s->fd, iov, n);
}

static ssize_t stream_send_pages(const struct stream *s, int file, int64_t offset, size_t n)
{
    off_t from = offset;

    if (s->kind == STREAM_SOCKET)
        return sendfile(s->fd, file, &from, n);
    return splice(file, &from, s->fd, NULL, n, SPLICE_F_NONBLOCK);
}

/* A broken peer is EPIPE and never SIGPIPE, whatever the process does with that signal: between these two calls it is
 * held back in this thread; what raised it then is taken away. sendmsg() has a flag for that. */
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

/* Send once: what is staged and the last `left` bytes before `end`, or, with a `file`, first what is staged and then
 * pages of the file up to `until`. */
static ssize_t stream_send_once(const struct stream *s, const uint8_t *end, size_t left, int file, int64_t until)
{
    size_t staged = s->tail - s->head;
    struct iovec iov[2] = {{s->staging + s->head, staged}, {(void *)(end - left), left}};

    if (file >= 0 && !staged)
        return stream_send_pages(s, file, until - left, left);
    return stream_writev(s, iov, left && file < 0 ? 2 : 1, file >= 0);
}

static inline void stream_staged(struct stream *s, size_t n)
{
    s->tail += n;
    s->position += n;
}

/* Send what is staged and then the last *left bytes before `end`, or before `until` of the file. 0 when all is gone;
 * EFAULT, without an exception, when these bytes are not to be had that way: *left of them are not sent then. */
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
    if (!error && mapped && file < 0)
        io_drop(end - n, n);
    return error;
}

/* ---- reading ---- */

/* Take what is staged out of the socket, where it was left, but for the last `rest` bytes. */
static int stream_unpeek(struct stream *s, size_t rest)
{
    ssize_t got;

    while (s->peeked > rest) {
        got = recv(s->fd, NULL, s->peeked - rest, MSG_TRUNC | MSG_DONTWAIT);
        if (got > 0)
            s->peeked -= got;
        else if (got == 0 || io_again() < 0)
            return got == 0 ? io_fail(EIO) : -1;
    }
    return 0;
}

/* Forget what is staged if the socket still has all of it, so that it is read from there. 1 if nothing is staged then. */
static int stream_unstage(struct stream *s)
{
    size_t staged = s->tail - s->head;

    if (staged > s->peeked)
        return 0;
    if (stream_unpeek(s, staged) < 0)
        return -1;
    s->head = s->tail = s->peeked = 0;
    return 1;
}

static inline void stream_consume(struct stream *s, size_t n)
{
    s->head += n;
    s->position += n;
    if (s->head == s->tail)
        s->head = s->tail = 0;
}

/* Let waits for a TCP socket end when n bytes have come, or the end: each time it is woken for less costs both sides. */
static void stream_lowat(struct stream *s, size_t n)
{
    int lowat = n < STREAM_LOWAT ? n : STREAM_LOWAT;

    if (s->lowat && s->lowat != lowat && setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof(lowat)) == 0)
        s->lowat = lowat;
}

static int stream_ended(const struct stream *s)
{
    PyGILState_STATE gil = PyGILState_Ensure();

    PyErr_Format(PyExc_EOFError, "the stream ends at byte %llu, inside an item",
                 (unsigned long long)(s->position + s->tail - s->head));
    PyGILState_Release(gil);
    return -1;
}

/* Let a block come, without being seen to wait for it. A TCP receiver that waits is woken, and answers every 64 KiB while
 * SO_RCVLOWAT is not reached: on one machine, where the sender's thread does all that, it takes up to four times as long
 * and never gets ahead again. 2 GiB took 0.22 to 0.33 s, half of the runs; with this, 0.23 to 0.25. */
static void stream_nap(const struct stream *s)
{
    struct pollfd wake = {s->wake_fd, POLLIN, 0};

    ppoll(&wake, 1, &stream_moment, NULL);
}

/* Wait for input. Behind a payload comes the next one, most likely: it is given a moment to arrive, for each time that
 * the waiting side is woken costs both, and a head alone is not worth it. */
static int stream_wait_input(struct stream *s)
{
    struct pollfd fds[2] = {{s->fd, POLLIN, 0}, {s->wake_fd, POLLIN, 0}};
    int lingers = s->lingers;

    s->lingers = 0;
    if (lingers && s->naps) {
        stream_nap(s);
        return 1;
    }
    if (lingers && s->lowat) {
        stream_lowat(s, STREAM_LINGER_NBYTES);
        ppoll(fds, 2, &stream_moment, NULL);
        stream_lowat(s, 1);
    }
    return stream_wait(s, POLLIN);
}

/* Read once: up to n bytes to p, and then up to `room` behind what is staged. Returns the bytes at p. */
static ssize_t stream_read(struct stream *s, uint8_t *p, size_t n, size_t room)
{
    struct iovec iov[2] = {{p, n}, {s->staging + s->tail, room}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    int peeks = s->peeks && s->lowat && n == 0, ready;
    ssize_t got;

    if (stream_unpeek(s, 0) < 0)
        return -1;
    for (;;) {
        /* A blocking one must not block, and a named pipe that nobody has opened for writing yet is not at its end. */
        if (s->kind == STREAM_PIPE && !(s->takes_pages && s->position + s->tail)) {
            while ((ready = stream_wait(s, POLLIN)) == 0)
                ;
            if (ready < 0)
                return -1;
        }
        got = s->kind != STREAM_SOCKET ? readv(s->fd, iov, 2)
                                       : recvmsg(s->fd, &msg, MSG_DONTWAIT | (peeks ? MSG_PEEK : 0));
        if (got >= 0)
            break;
        if ((errno == EAGAIN ? stream_wait_input(s) : io_again()) < 0)
            return -1;
    }
    if (got == 0)
        return stream_ended(s);
    if (n == 0 && s->idle > 0 && !stream_renew(s) && s->position - s->renewed_at > STREAM_CHATTER)
        return io_fail(EPROTO);
    if ((size_t)got <= n)
        return got;
    s->tail += got - n;
    if (peeks)
        s->peeked = got;
    return n;
}

/* Have at least n bytes staged, n <= capacity. */
static int stream_require(struct stream *s, size_t n)
{
    size_t staged, room, most = s->ahead > n ? s->ahead : n;

    if (most > s->capacity - s->head) {
        memmove(s->staging, s->staging + s->head, s->tail - s->head);
        s->tail -= s->head;
        s->head = 0;
    }
    while ((staged = s->tail - s->head) < n) {
        room = s->ahead ? most - staged : s->capacity - s->tail;
        if (stream_read(s, NULL, 0, room) < 0)
            return -1;
    }
    return 0;
}

/* As stream_require(), called with the GIL, which is dropped while reading. */
static int stream_need(struct stream *s, size_t n)
{
    int rc = stream_check(s);

    if (rc == 0 && n > s->tail - s->head) {
        s->busy = 1;
        Py_BEGIN_ALLOW_THREADS
        rc = stream_require(s, n);
        Py_END_ALLOW_THREADS
        s->busy = 0;
    }
    return rc;
}

/* Drop n bytes, which are payload if they are `useful`. With the GIL. */
static int stream_skip(struct stream *s, uint64_t n, int useful)
{
    size_t staged;

    for (; n; n -= staged) {
        if (stream_need(s, 1) < 0)
            return -1;
        staged = n < s->tail - s->head ? n : s->tail - s->head;
        stream_consume(s, staged);
        s->useful += useful ? staged : 0;
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
        s->useful += sizeof(word);
        if (stream_skip(s, (word & mask) == a ? a_nbytes : b_nbytes, 1) < 0)
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
    s->useful += done;
    s->lingers = 0;
    for (; done < n; done += got) {     /* nothing is staged before the last of these reads */
        stream_lowat(s, n - done);
        got = stream_read(s, p + done, n - done, s->ahead ? s->ahead : STREAM_READ_AHEAD);
        if (got < 0)
            return -1;
        s->position += got;
        s->useful += got;
    }
    stream_lowat(s, 1);
    s->lingers = 1;
    return 0;
}

/* Break a TCP connection at once, for the peer and for every process that has it: the peer sees a reset, no end. */
static int stream_break(int fd)
{
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};

    return connect(fd, &nowhere, sizeof(nowhere)) < 0 ? io_fail(errno) : 0;
}

#endif
