# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport uint8_t


cdef extern from "c/bits.h":
    struct bits:
        unsigned long* words
        uint8_t* summary
        uint8_t* sweeping
        size_t nwords
        bint summed
    void bits_summarise(const bits*) noexcept nogil

# Ranges are [start, stop) and not empty.
ctypedef Py_ssize_t (*bits_range_fn)(const bits*, size_t start, size_t stop) noexcept nogil
ctypedef Py_ssize_t (*bits_pair_fn)(const bits*, const bits*) noexcept nogil

cdef extern from "c/bits_find.h":
    Py_ssize_t bits_find_set(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_find_clear(const bits*, size_t start, size_t stop) noexcept nogil

cdef extern from "c/bits_count.h":
    Py_ssize_t bits_count(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_count_rounded(
        const bits*, size_t start, size_t stop, size_t group, size_t enough
    ) noexcept nogil

cdef extern from "c/bits_change.h":
    struct bits_area:
        size_t start, stop
    Py_ssize_t bits_set(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_clear(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_take(const bits*, size_t start, size_t stop) noexcept nogil
    size_t bits_take_areas(const bits*, size_t start, size_t stop, bits_area*, size_t most) noexcept nogil
    Py_ssize_t bits_merge(const bits*, const bits* other) noexcept nogil
    Py_ssize_t bits_move(const bits*, const bits* target) noexcept nogil
