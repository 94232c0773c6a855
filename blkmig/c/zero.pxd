# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport uint8_t


cdef extern from "c/zero.h":
    ctypedef int (*zero_kernel_fn)(const uint8_t*, size_t) noexcept nogil
    struct zero_kernel_entry "zero_kernel":
        const char* name
        zero_kernel_fn fn
    zero_kernel_entry* zero_kernels_built
    int zero_kernels_built_count
    zero_kernel_fn zero_chosen
    void zero_detect() noexcept nogil
    bint zero_sample(const uint8_t*, size_t) noexcept nogil
    bint zero_run(zero_kernel_fn, const void*, size_t) noexcept nogil
