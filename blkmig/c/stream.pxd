# SPDX-License-Identifier: GPL-2.0-or-later
from posix.time cimport timespec
from libc.stdint cimport int64_t, uint8_t, uint64_t

from .._core cimport pipes


cdef extern from "c/clock.h":
    double io_seconds() noexcept nogil

cdef extern from "c/stream.h":
    struct stream:
        uint8_t* staging
        size_t capacity, head, tail
        bint busy
        uint64_t position, flushed
        size_t ahead
        size_t read_ahead, most_lowat, linger_nbytes
        timespec linger
        bint takes_pages, peeks, naps
        double idle, first
        uint64_t useful, least_useful, most_chatter
    int stream_init(stream*, int fd, Py_ssize_t capacity, int wake_fd) except -1
    int stream_check(const stream*) except -1
    int stream_break(int fd) except -1

cdef extern from "c/stream_send.h":
    void stream_staged(stream*, size_t) noexcept nogil
    int stream_send(stream*, const uint8_t* end, size_t* left, int file, int64_t until, bint mapped) except -1 nogil

cdef extern from "c/stream_read.h":
    int stream_unpeek(stream*, size_t rest) except -1
    int stream_unstage(stream*) except -1
    void stream_consume(stream*, size_t) noexcept nogil
    int stream_need(stream*, size_t) except -1
    int stream_skip(stream*, uint64_t, bint useful) except -1
    uint64_t stream_skip_words(stream*, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t) except? 0
    int stream_take(stream*, uint8_t*, size_t) except -1 nogil

cdef extern from "c/stream_pipes.h":
    Py_ssize_t pipes_take(pipes*, stream*, size_t) except -1 nogil
