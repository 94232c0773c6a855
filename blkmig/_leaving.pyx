# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""How a process ends whose files cannot be closed, because their file system answers no more: see c/leaving.h."""

from libc.errno cimport errno
from libc.stdlib cimport free, malloc


cdef extern from "c/leaving.h":
    long leaving_files(const int* fds, size_t count) noexcept nogil


def leave_files(list fds, /):
    """Leave the open files to a child that closes `fds` at once, and all others when this process has ended.

    Call it last before ``os._exit``, which then waits for no file system. Does not block. Raises OSError if there can
    be no child.
    """
    cdef Py_ssize_t count = len(fds)
    cdef int* numbers = <int*> malloc((count + 1) * sizeof(int))
    if numbers == NULL:
        raise MemoryError
    try:
        for i in range(count):
            numbers[i] = fds[i]
        if leaving_files(numbers, count) < 0:
            raise OSError(errno, "the open files cannot be left to another process")
    finally:
        free(numbers)
