# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""How a process ends whose files cannot be closed, because their file system answers no more: see c/leaving.h."""

from libc.errno cimport errno
from libc.stdlib cimport free, malloc


cdef extern from "c/leaving.h":
    long leaving_files(const int* fds, size_t count, size_t first) noexcept nogil


def leave_files(list at_once, list behind, /):
    """Leave the open files to a child. It closes those `at_once`, and when this process has ended those `behind` one by
    one, and then all others together, which may hang.

    Call it last before ``os._exit``, which then waits for no file system. Does not block. Raises OSError if there can
    be no child.
    """
    cdef list fds = at_once + behind
    cdef Py_ssize_t count = len(fds), first = len(at_once)
    cdef int* numbers = <int*> malloc((count + 1) * sizeof(int))
    if numbers == NULL:
        raise MemoryError
    try:
        for i in range(count):
            numbers[i] = fds[i]
        if leaving_files(numbers, count, first) < 0:
            raise OSError(errno, "the open files cannot be left to another process")
    finally:
        free(numbers)
