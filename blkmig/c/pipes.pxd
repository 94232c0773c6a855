# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport uint8_t

from .._core cimport pipes


cdef extern from "c/pipes.h":
    pipes* pipes_new() except NULL
    void pipes_free(pipes*) noexcept nogil
    bint pipes_held(const pipes*) noexcept nogil
    void pipes_close(pipes*) noexcept nogil
    bint pipes_open(pipes*) noexcept nogil
    Py_ssize_t pipes_read(pipes*, uint8_t*) except -1 nogil
