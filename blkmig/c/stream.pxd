# SPDX-License-Identifier: GPL-2.0-or-later
from posix.time cimport timespec
from libc.stdint cimport uint8_t, uint64_t


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
        bint takes_pages, is_fifo, peeks, naps
        Py_ssize_t (*unseal)(void* owner, uint8_t* p, size_t n, int many) except -1 nogil
        void* owner
        double idle, first
        uint64_t useful, least_useful, most_chatter
    int stream_init(stream*, int fd, Py_ssize_t capacity, int wake_fd) except -1
    int stream_check(const stream*) except -1
    int stream_break(int fd) except -1
