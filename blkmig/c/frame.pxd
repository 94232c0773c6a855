# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport uint8_t, uint64_t


cdef extern from "c/frame.h":
    struct frame_run:
        uint64_t word
        size_t count
        const char* name
        size_t length
        size_t nbytes
    enum:
        FRAME_EXTENTS_MAX
        FRAME_EXTENT_NBYTES
    void frame_put_extent(uint8_t*, const uint64_t* pair) noexcept nogil
    void frame_get_extent(const uint8_t*, uint64_t* pair) noexcept nogil
    const char* frame_check_extents(const uint64_t* pairs, size_t, size_t* total) noexcept nogil
    void frame_put_number(uint8_t*, uint64_t value, size_t) noexcept nogil
    uint64_t frame_get_number(const uint8_t*, size_t) noexcept nogil
    size_t frame_head(uint8_t*, uint64_t word, const char* name, size_t length) noexcept nogil
    void frame_zero_records(uint8_t*, uint64_t word, size_t count, const char* name, size_t length) noexcept nogil
    frame_run frame_parse(const uint8_t*, size_t) noexcept nogil
