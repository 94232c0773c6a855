# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport uint8_t, uint64_t

from .._core cimport pipes
from .stream cimport stream


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
