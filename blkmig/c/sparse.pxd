# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport int64_t, uint8_t

from .._core cimport pipes


cdef extern from "c/sparse.h":
    Py_ssize_t io_store_sparse(
        int fd, const uint8_t*, size_t, int64_t offset, size_t cluster, bint punch, bint allocate, uint8_t* scratch
    ) except -1 nogil

cdef extern from "c/pipes_store.h":
    Py_ssize_t pipes_store(
        pipes*, int fd, size_t, int64_t offset, size_t cluster, bint allocate, size_t places, uint8_t* scratch
    ) except -1 nogil
