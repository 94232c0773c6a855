# SPDX-License-Identifier: GPL-2.0-or-later
# Included in _core.pyx: what happens to a target behind the back of whoever receives.


class LateError(OSError):
    """What was put at `offset` could not be stored, which is told at a later call."""


@cython.final
cdef class WriteBehind:
    """Stores payloads in a file, in the order in which they are put, on another thread.

    Zero clusters become holes in steps of `cluster` bytes, as in BlockBuffer.store_sparse; 0: nothing does, as in store.
    A thread of the caller's runs run(); another one puts, up to four blocks ahead, and drains before anything else is
    done to the file.

    A block that cannot be stored is a LateError at the next put or drain, and at all later ones; nothing that was put
    after it is stored. `told`: that there was such an error and it was raised.
    """

    cdef behind b
    cdef size_t cluster
    cdef object error               # set before b is closed for it, then read-only
    cdef readonly bint told         # `error` was raised
    cdef bint busy                  # somebody puts or drains; under the GIL
    cdef bint running               # under the GIL
    cdef unsigned born              # in which process: see c/fork.h

    def __cinit__(self, size_t cluster, /):
        behind_init(&self.b)
        self.cluster = cluster
        self.born = fork_count

    def __dealloc__(self):
        behind_free(&self.b)

    def put(self, BlockBuffer blk not None, int fd, int64_t offset, bint allocate, /):
        """Take the payload of `blk` away, to be stored at `offset` of the file `fd`. Drops the GIL.

        Blocks while as many wait as may. `blk` may be used again at once, and has no payload until then; a view of it
        that is alive is a BufferError. `allocate` as in BlockBuffer.store_sparse.
        """
        if blk.exports:
            raise BufferError("the payload cannot be taken while a view of it is alive")
        self.begin()
        try:
            blk.begin()
            try:
                if not (self.cluster and pages_held(&blk.pages)):
                    blk.take_back()
                with nogil:
                    behind_put(&self.b, &blk.pages, &blk.own, fd, offset, allocate)
            finally:
                blk.busy = False
        finally:
            self.busy = False
        self.check()

    def drain(self):
        """Return when all is stored. Drops the GIL."""
        self.begin()
        with nogil:
            behind_drain(&self.b)
        self.busy = False
        self.check()

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

    cpdef check(self):
        """Raise what is known by now not to be stored. Waits for nothing."""
        if self.error is not None:
            self.told = True
            raise self.error

    def close(self):
        """Have run() return, after the block that it is storing; what waits is not stored. Safe twice."""
        behind_close(&self.b)

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
            behind_close(&self.b)
        finally:
            self.running = False

    cdef int store_all(self, int64_t* offset) except -1 nogil:
        cdef behind_slot* slot = behind_next(&self.b, False)
        while slot != NULL:
            offset[0] = slot.offset
            if pages_held(&slot.pages):
                pages_store(
                    &slot.pages, slot.fd, BLOCK_SIZE, slot.offset, self.cluster, slot.allocate, slot.own)
            elif self.cluster:
                io_store_sparse(
                    slot.fd, slot.own, BLOCK_SIZE, slot.offset, self.cluster, True, slot.allocate, NULL)
            else:
                io_pwrite(slot.fd, slot.own, BLOCK_SIZE, slot.offset)
            slot = behind_next(&self.b, True)
        return 0


def start_writeback(int fd, /):
    """Have the dirty pages of the file `fd` written back, and do not wait for that: sync_file_range. Drops the GIL."""
    with nogil:
        io_start_writeback(fd)
