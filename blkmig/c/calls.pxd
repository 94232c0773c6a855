# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "c/calls.h":
    int FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
    Py_ssize_t io_pread(int fd, uint8_t*, size_t, int64_t offset) except -1 nogil
    int io_pwrite(int fd, const uint8_t*, size_t, int64_t offset) except -1 nogil
    int io_pread_extents(int fd, uint8_t*, const uint64_t* pairs, size_t, size_t* done) except -1 nogil
    int io_pwrite_extents(int fd, const uint8_t*, const uint64_t* pairs, size_t, size_t* done) except -1 nogil
    int io_fallocate(int fd, int mode, int64_t offset, int64_t) except -1 nogil
    int io_zero_out(int fd, uint64_t offset, uint64_t) except -1 nogil
    int io_start_writeback(int fd) except -1 nogil
    int io_next_data(int fd, int64_t offset, int64_t size, int64_t* start, int64_t* end) except -1 nogil
