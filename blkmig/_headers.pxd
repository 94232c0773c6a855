# SPDX-License-Identifier: GPL-2.0-or-later
# What _core.pyx uses of the headers beside it. Not a contract: other packages cimport _core.

from libc.stdint cimport uint8_t, uint64_t


cdef extern from "_zero.h":
    ctypedef int (*zero_kernel_fn)(const uint8_t*, size_t) noexcept nogil
    struct zero_kernel_entry "zero_kernel":
        const char* name
        zero_kernel_fn fn
    zero_kernel_entry* zero_kernels_built
    int zero_kernels_built_count
    zero_kernel_fn zero_chosen
    void zero_detect() noexcept nogil
    bint zero_run(zero_kernel_fn, const void*, size_t) noexcept nogil
    bint zero_scan(zero_kernel_fn, const void*, size_t) noexcept

cdef extern from "_bits.h":
    struct bits:
        unsigned long* words
        uint8_t* summary
        uint8_t* sweeping
        size_t nwords
        bint summed
    struct bits_area:
        size_t start, stop
    void bits_summarise(const bits*) noexcept nogil

    # For bits_over, the searches for bits_find, the last two for bits_with.
    Py_ssize_t bits_find_set(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_find_clear(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_count(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_set(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_clear(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_take(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_merge(const bits*, const bits* other) noexcept nogil
    Py_ssize_t bits_move(const bits*, const bits* target) noexcept nogil

    # These drop the GIL where that pays.
    ctypedef Py_ssize_t (*bits_range_fn)(const bits*, size_t start, size_t stop) noexcept nogil
    ctypedef Py_ssize_t (*bits_pair_fn)(const bits*, const bits*) noexcept nogil
    Py_ssize_t bits_over(bits_range_fn, bits, size_t start, size_t stop) noexcept
    Py_ssize_t bits_find(bits_range_fn, bits, size_t start, size_t stop) noexcept
    Py_ssize_t bits_with(bits_pair_fn, bits, bits) noexcept
    size_t bits_take_areas(bits, size_t start, size_t stop, bits_area*, size_t most) noexcept

cdef extern from "_frame.h":
    struct frame_run:
        uint64_t word
        size_t count
        const char* name
        size_t length
        size_t nbytes
    void frame_put_number(uint8_t*, uint64_t value, size_t) noexcept nogil
    uint64_t frame_get_number(const uint8_t*, size_t) noexcept nogil
    size_t frame_head(uint8_t*, uint64_t word, const char* name, size_t length) noexcept nogil
    void frame_zero_records(uint8_t*, uint64_t word, size_t count, const char* name, size_t length) noexcept nogil
    void frame_zero_run(uint8_t*, uint64_t word, size_t count, const char* name, size_t length) noexcept
    frame_run frame_parse(const uint8_t*, size_t) noexcept nogil
