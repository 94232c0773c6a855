/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What arrives: numbers and heads by way of the staging buffer, payloads straight to their place.
 */
#ifndef BLKMIG_STREAM_READ_H
#define BLKMIG_STREAM_READ_H

#include "stream.h"

#include <endian.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

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

/* Let waits for a TCP socket end when n bytes have come, or the end: waking up for less costs both sides time. */
static void stream_lowat(struct stream *s, size_t n)
{
    int lowat;

    if (s->unseal)                      /* a part of what is missing may have come, and wait for the rest of its record */
        n = n > STREAM_SEAL_NBYTES ? n - STREAM_SEAL_NBYTES : 1;
    lowat = n < s->most_lowat ? n : s->most_lowat;
    if (s->most_lowat && s->lowat != (size_t)lowat
        && setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof(lowat)) == 0)
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

/* Let a block come, without being seen to wait for it: as long as it would linger. */
static void stream_nap(const struct stream *s)
{
    struct pollfd wake = {s->wake_fd, POLLIN, 0};

    ppoll(&wake, 1, &s->linger, NULL);
}

/* Wait for input. Behind a long payload comes the next one, most likely. It gets a moment to arrive: waking up the waiting
 * side costs both sides time, and a head alone is not worth that. Behind a short one the moment would be lost: a word that
 * the other side waits to have answered comes alone, and in a pause writers wait for that. */
static int stream_wait_input(struct stream *s)
{
    struct pollfd fds[2] = {{s->fd, POLLIN, 0}, {s->wake_fd, POLLIN, 0}};
    int lingers = s->lingers;

    s->lingers = 0;
    if (lingers && s->naps) {
        stream_nap(s);
        return 1;
    }
    if (lingers && s->linger_nbytes) {
        stream_lowat(s, s->linger_nbytes);
        ppoll(fds, 2, &s->linger, NULL);
        stream_lowat(s, 1);
    }
    return stream_wait(s, POLLIN);
}

/* The bytes that one call gets, to p or, if n is 0, behind what is staged; -1 with errno, -2 if it raised an exception. */
static ssize_t stream_get(struct stream *s, struct iovec iov[2], int peeks)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    int many = iov[0].iov_len > 0;
    ssize_t got;

    if (s->unseal) {
        got = s->unseal(s->owner, iov[!many].iov_base, iov[!many].iov_len, many);
        errno = EAGAIN;
        return got == STREAM_NOTHING ? -1 : got == -1 ? -2 : got;
    }
    if (s->kind != STREAM_SOCKET)
        return readv(s->fd, iov, 2);
    return recvmsg(s->fd, &msg, MSG_DONTWAIT | (peeks ? MSG_PEEK : 0));
}

/* Read once: up to n bytes to p, and then up to `room` behind what is staged. Returns the bytes at p. */
static ssize_t stream_read(struct stream *s, uint8_t *p, size_t n, size_t room)
{
    struct iovec iov[2] = {{p, n}, {s->staging + s->tail, room}};
    int peeks = s->peeks && s->most_lowat && n == 0, ready;
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
        got = stream_get(s, iov, peeks);
        if (got >= 0)
            break;
        if (got == -2 || (errno == EAGAIN ? stream_wait_input(s) : io_again()) < 0)
            return -1;
    }
    if (got == 0)
        return stream_ended(s);
    if (n == 0 && s->idle > 0 && s->most_chatter && !stream_renew(s) && s->position - s->renewed_at > s->most_chatter)
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

/* Pass over the next n bytes of a file without reading them: 1 if that was done, 0 if they are to be read. Few are, and all
 * of a file that has not so many more: reading finds out where it ends. Nothing is staged. */
static int stream_jump(struct stream *s, uint64_t n)
{
    struct stat st;
    off_t at;

    if (s->kind != STREAM_FILE || n < s->capacity || fstat(s->fd, &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    at = lseek(s->fd, 0, SEEK_CUR);
    if (at < 0 || at > st.st_size || n > (uint64_t)(st.st_size - at) || lseek(s->fd, n, SEEK_CUR) < 0)
        return 0;
    s->position += n;
    return 1;
}

/* Drop n bytes, which are payload if they are `useful`. With the GIL. */
static int stream_skip(struct stream *s, uint64_t n, int useful)
{
    size_t staged;

    for (; n; n -= staged) {
        if (stream_check(s) < 0)
            return -1;
        if (s->head == s->tail && stream_jump(s, n))
            return 0;
        if (stream_need(s, 1) < 0)
            return -1;
        staged = n < s->tail - s->head ? n : s->tail - s->head;
        stream_consume(s, staged);
        s->useful += useful ? staged : 0;
    }
    return 0;
}

enum { STREAM_WORDS = 65536 };

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
        got = stream_read(s, p + done, n - done, s->ahead ? s->ahead : s->read_ahead);
        if (got < 0)
            return -1;
        s->position += got;
        s->useful += got;
    }
    stream_lowat(s, 1);
    s->lingers = n >= s->linger_nbytes;
    return 0;
}

#endif
