# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""Who is inside a disk, counted so that nothing can come between a step and its count. The policy is in disk/gate.py.

An extension of its own: it is none of the verbs of `_core`, and uses only one of them, which sets all bits of a bitmap.
"""

cimport cython
from libc.stdint cimport uint64_t

from ._core cimport Bitmap, set_bits
from .c.fork cimport fork_count, fork_watch


cdef extern from "c/index.h":
    pass

fork_watch()


@cython.final
cdef class Gate:
    """How many writers and readers are inside a disk, and whether more may come in without asking. Under the GIL.

    Python runs signal handlers between two calls, and so may raise there. Here a step and its count are one call, so
    that nobody is ever counted in and not out, and nothing is ever written and not marked.
    """

    cdef readonly Py_ssize_t writers    # inside
    cdef readonly Py_ssize_t readers    # inside
    cdef readonly uint64_t written      # bytes that writers came to write, failed ones included
    cdef public bint shut               # no writer may enter: it asks again and again
    cdef public bint throttled          # a writer asks once before it enters
    cdef unsigned born                  # the process: see c/fork.h

    def __cinit__(self):
        self.born = fork_count

    def __init__(self):
        pass                            # takes no arguments, which a __cinit__ without any does not check

    @property
    def is_foreign(self):
        """Whether this process is a child of the one that made it: its writers and trackers are not those here."""
        return self.born != fork_count


@cython.final
@cython.freelist(8)
cdef class Passage:
    """A ``with`` inside `gate`: of one who writes [offset, offset + nbytes) of `disk`, or, without `writes`, reads.

    A writer that may not simply enter calls ``disk._await_entry()``, which waits, or raises and keeps it out. On the
    way out ``disk._mark(offset, nbytes)`` is called, whatever has happened inside; if that fails, again, and at last
    every bit of ``disk._trackers`` is set. The last one out of a gate that is shut calls ``disk._wake()``.
    """

    cdef Gate gate
    cdef object disk
    cdef object offset
    cdef object nbytes
    cdef bint writes
    cdef bint inside

    def __cinit__(self, Gate gate not None, disk, Py_ssize_t offset, Py_ssize_t nbytes, bint writes, /):
        self.gate = gate
        self.disk = disk
        self.offset = offset
        self.nbytes = nbytes
        self.writes = writes

    def __enter__(self):
        """Enter, once at a time."""
        cdef bint asks = self.gate.throttled
        if self.inside:
            raise RuntimeError("this passage is in use: make one for each with")
        while self.writes and (self.gate.shut or asks or self.gate.born != fork_count):
            asks = False
            self.disk._await_entry()
        self.inside = True
        if self.writes:
            self.gate.writers += 1
        else:
            self.gate.readers += 1

    def __exit__(self, exc_type, exc, traceback, /):
        """Mark and leave."""
        if not self.inside:
            raise RuntimeError("this passage was not entered")
        self.inside = False
        try:
            if self.writes:
                self.mark()
        finally:
            if self.writes:
                self.gate.written += <uint64_t><Py_ssize_t>self.nbytes
                self.gate.writers -= 1
            else:
                self.gate.readers -= 1
            if self.gate.shut and not self.gate.writers and not self.gate.readers:
                self.disk._wake()

    cdef int mark(self) except -1:
        # Marking twice does no harm. A signal handler that raises meanwhile must not keep it from being done.
        cdef int tries = 3
        cdef Bitmap bitmap
        failure = None
        while tries:
            try:
                self.disk._mark(self.offset, self.nbytes)
                break
            except BaseException as error:
                failure = failure or error
                tries -= 1
        if not tries:
            for tracker in self.disk._trackers:     # no Python code runs here
                bitmap = tracker.bits
                set_bits(bitmap, 0, bitmap.size)
        if failure is not None:
            raise failure
        return 0
