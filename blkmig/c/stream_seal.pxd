# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport uint8_t

from .stream cimport stream


cdef extern from "c/stream_seal.h":
    int stream_seal(stream*, object seal, const uint8_t*, size_t) except -1
    Py_ssize_t stream_unseal(void* unseal, uint8_t*, size_t, int many) except -1 nogil
