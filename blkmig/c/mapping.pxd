# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport uint8_t


cdef extern from "c/mapping.h":
    bint io_populate(uint8_t*, size_t) noexcept nogil
    uint8_t* io_map(int fd, size_t, int* own) except NULL
    void io_unmap(uint8_t*, size_t, int own) noexcept nogil
    uint8_t* io_alloc_pages(size_t) except NULL
    uint8_t* io_alloc_gifts() except NULL
    int io_renew_gifts(uint8_t*) except -1
    void io_free_gifts(uint8_t*) noexcept
