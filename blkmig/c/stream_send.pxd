# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport int64_t, uint8_t

from .stream cimport stream


cdef extern from "c/stream_send.h":
    enum:
        STREAM_COPIES
        STREAM_GIVES
    void stream_staged(stream*, size_t) noexcept nogil
    int stream_send(stream*, const uint8_t* end, size_t* left, int file, int64_t until, bint mapped) except -1 nogil
