# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The queue of payloads that a thread stores in a file while the next ones are on their way.

Knows no policy: the depths are said by whoever makes the queue. Errors, the GIL, EINTR and what counts as a number are
as in `_core`, whose blocks give their payloads away here. One thread puts, another one runs the queue; a third is
refused.
"""

cimport cython
from libc.errno cimport ECHILD
from libc.stdint cimport int64_t

from ._core cimport BLOCK_SIZE, BlockBuffer, begin_block, store_payload, take_block_back
from .c.fork cimport fork_count, fork_watch
from .c.pipes cimport pipes_held
from .c.storing cimport (
    storing, storing_close, storing_drain, storing_free, storing_init, storing_next, storing_put, storing_slot,
)


cdef extern from "c/index.h":
    pass

cdef enum:
    DEPTH_MAX = 64                  # blocks of a queue, each a MiB

fork_watch()


class LateError(OSError):
    """What was put at `offset` could not be stored, which is told at a later call."""


@cython.final
cdef class StoringQueue:
    """Stores payloads in a file, in the order in which they are put, on another thread.

    Zero clusters become holes in steps of `cluster` bytes, as in BlockBuffer.store_sparse with its `places`; 0: nothing
    does, as in store. A thread of the caller's runs run(); another one puts, up to `depth` blocks ahead, or `tcp_depth`
    of those that came over TCP as pages, and drains before anything else is done to the file.

    A block that cannot be stored is a LateError at the next put or drain, and at all later ones; nothing that was put
    after it is stored. `told`: that there was such an error and it was raised.
    """

    cdef storing s
    cdef size_t cluster, places
    cdef object error               # set before b is closed for it, then read-only
    cdef readonly bint told         # `error` was raised
    cdef bint busy                  # somebody puts or drains; under the GIL
    cdef bint running               # under the GIL
    cdef unsigned born              # in which process: see c/fork.h

    def __cinit__(self, size_t cluster, Py_ssize_t depth, Py_ssize_t tcp_depth, Py_ssize_t places, /):
        if not 1 <= tcp_depth <= depth <= DEPTH_MAX:
            raise ValueError(f"depths must be 1 to {DEPTH_MAX}, the first not below the second: {depth}, {tcp_depth}")
        if not 0 <= places <= BLOCK_SIZE:
            raise ValueError(f"a block does not have {places} places")
        storing_init(&self.s, depth, tcp_depth)
        self.cluster = cluster
        self.places = places
        self.born = fork_count

    def __dealloc__(self):
        storing_free(&self.s)

    def put(self, BlockBuffer blk not None, int fd, int64_t offset, bint allocate, /):
        """Take the payload of `blk` away, to be stored at `offset` of the file `fd`. Drops the GIL.

        Blocks while as many wait as may. `blk` may be used again at once, and has no payload until then; a view of it
        that is alive is a BufferError. `allocate` as in BlockBuffer.store_sparse.
        """
        if blk.gifts != NULL:
            raise ValueError("a payload that may be given to a pipe is for sending")
        if blk.exports:
            raise BufferError("the payload cannot be taken while a view of it is alive")
        self.begin()
        try:
            begin_block(blk)
            try:
                if not (self.cluster and pipes_held(blk.pipes)):
                    take_block_back(blk)
                with nogil:
                    storing_put(&self.s, &blk.pipes, &blk.own, fd, offset, allocate)
            finally:
                blk.busy = False
        finally:
            self.busy = False
        raise_known(self)

    def drain(self):
        """Return when all is stored. Drops the GIL."""
        self.begin()
        with nogil:
            storing_drain(&self.s)
        self.busy = False
        raise_known(self)

    cdef int begin(self) except -1:
        if self.born != fork_count:
            raise ChildProcessError(ECHILD, "the thread that stores is the parent process's: this is a fork's child")
        if self.busy:
            raise RuntimeError("another thread puts or drains: one at a time")
        self.busy = True
        return 0

    @property
    def is_foreign(self):
        """Whether this is a child of the process that made it, so that nobody here stores what is put."""
        return self.born != fork_count

    def check(self):
        """Raise what is known by now not to be stored. Waits for nothing."""
        raise_known(self)

    def close(self):
        """Have run() return, after the block that it is storing; what waits is not stored. Safe twice."""
        storing_close(&self.s)

    def run(self):
        """Store what is put until it is closed. Drops the GIL all the time."""
        cdef int64_t offset = 0
        if self.running:
            raise RuntimeError("another thread runs it: one at a time")
        self.running = True
        try:
            with nogil:
                self.store_all(&offset)
        except BaseException as error:
            self.error = LateError(*error.args)
            self.error.offset = offset
            self.error.__cause__ = error
            storing_close(&self.s)
        finally:
            self.running = False

    cdef int store_all(self, int64_t* offset) except -1 nogil:
        cdef storing_slot* slot = storing_next(&self.s, False)
        while slot != NULL:
            offset[0] = slot.offset
            store_payload(
                slot.pipes, slot.own, slot.fd, slot.offset, self.cluster, slot.allocate, self.places)
            slot = storing_next(&self.s, True)
        return 0


cdef int raise_known(StoringQueue queue) except -1:
    if queue.error is not None:
        queue.told = True
        raise queue.error
    return 0
