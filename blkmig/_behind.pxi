# SPDX-License-Identifier: GPL-2.0-or-later
# Included in _core.pyx: what happens to a target behind the back of whoever receives.


class LateError(OSError):
    """What was put at `offset` could not be stored, which is told at a later call."""


@cython.final
cdef class WriteBehind:
    """Stores payloads that came as pages in the file `fd`, in the order in which they are put, on another thread.

    Zero clusters become holes in steps of `cluster` bytes, as in BlockBuffer.store_sparse. A thread of the caller's runs
    run(); another one puts, up to two blocks ahead, and drains before anything else is done to the file.

    A block that cannot be stored is a LateError at the next put or drain, and at all later ones; nothing that was put
    after it is stored.
    """

    cdef behind b
    cdef int fd
    cdef size_t cluster
    cdef uint8_t* scratch           # BLOCK_SIZE bytes of the storing thread's
    cdef object error               # set before b is closed for it, then read-only

    def __cinit__(self, int fd, size_t cluster, /):
        behind_init(&self.b)
        self.fd, self.cluster = fd, cluster
        self.scratch = io_alloc_pages(BLOCK_SIZE)

    def __dealloc__(self):
        behind_free(&self.b)
        free(self.scratch)

    def put(self, BlockBuffer blk not None, int64_t offset, bint allocate, /):
        """Take the payload of `blk`, which must have pages, to be stored at `offset`. Drops the GIL.

        Blocks while there are two. `blk` may be used again at once. `allocate` as in BlockBuffer.store_sparse.
        """
        if not pages_held(&blk.pages):
            raise ValueError("the payload did not come as pages")
        with nogil:
            behind_put(&self.b, &blk.pages, offset, allocate)
        self.check()

    def drain(self):
        """Return when all is stored. Drops the GIL."""
        with nogil:
            behind_drain(&self.b)
        self.check()

    cpdef check(self):
        """Raise what is known by now not to be stored. Waits for nothing."""
        if self.error is not None:
            raise self.error

    def close(self):
        """Have run() return, after the block that it is storing; what waits is not stored. Safe twice."""
        behind_close(&self.b)

    def run(self):
        """Store what is put until it is closed. Drops the GIL all the time."""
        cdef int64_t offset = 0
        try:
            with nogil:
                self.store_all(&offset)
        except BaseException as error:
            self.error = LateError(*error.args)
            self.error.offset = offset
            self.error.__cause__ = error
            behind_close(&self.b)

    cdef int store_all(self, int64_t* offset) except -1 nogil:
        cdef behind_slot* slot = behind_next(&self.b, False)
        while slot != NULL:
            offset[0] = slot.offset
            pages_store(&slot.pages, self.fd, BLOCK_SIZE, slot.offset, self.cluster, slot.allocate, self.scratch)
            slot = behind_next(&self.b, True)
        return 0


def start_writeback(int fd, /):
    """Have the dirty pages of the file `fd` written back, and do not wait for that: sync_file_range. Drops the GIL."""
    with nogil:
        io_start_writeback(fd)
