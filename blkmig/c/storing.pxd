# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport int64_t, uint8_t

from .._core cimport pipes


cdef extern from "c/storing.h":
    struct storing:
        pass
    struct storing_slot:
        pipes* pipes
        uint8_t* own
        int fd
        int64_t offset
        bint allocate
    int storing_init(storing*, unsigned depth, unsigned tcp_depth) except -1
    void storing_free(storing*) noexcept nogil
    int storing_put(storing*, pipes**, uint8_t** own, int fd, int64_t offset, bint allocate) except -1 nogil
    void storing_drain(storing*) noexcept nogil
    void storing_close(storing*) noexcept nogil
    storing_slot* storing_next(storing*, bint was_stored) noexcept nogil
