# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The sending end of a byte stream: a staging buffer, and payloads that leave at once, copied or as pages of a file.

Knows no policy: patience and who shares pages are said by whoever makes the object. Errors, the GIL, EINTR and what
counts as a number are as in `_core`, whose blocks and bitmaps go through here. An object belongs to one thread at a
time, and refuses while another thread is in it.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from ._core cimport (
    BLOCK_SIZE, FLAG_DEVICE_BLOCK, FLAG_ZERO_BLOCK, SECTOR_BITS, SECTORS_PER_BLOCK, Bitmap, BlockBuffer, Mapping,
    begin_block, check_range, check_record, check_zero_run, clear_bits, extents_of, read_block_mapped, take_block_back,
)
from .c.fail cimport io_fail
from .c.fork cimport fork_watch
from .c.frame cimport (
    FRAME_EXTENT_NBYTES, FRAME_EXTENTS_MAX, frame_check_extents, frame_head, frame_put_extent, frame_put_number,
    frame_zero_records,
)
from .c.stream cimport io_seconds, stream, stream_break, stream_check, stream_init
from .c.stream_seal cimport stream_seal
from .c.stream_send cimport STREAM_COPIES, STREAM_GIVES, stream_send, stream_staged


cdef extern from "c/index.h":
    pass

cdef enum:
    HEADER_MAX = 8 + 1 + 255        # word, length byte, name

fork_watch()


class PayloadError(OSError):
    """The file of a payload cannot be read at `offset`; the stream, which has part of the payload, is not to blame."""


def reset_connection(int fd, /):
    """Break a TCP connection at once: the peer sees a reset, whoever else has `fd`, and nothing more is sent.

    What it has received already it can still read.
    """
    stream_break(fd)


@cython.final
cdef class OutputBuffer:
    """Bytes on their way into `fd`, a socket, a pipe or a file: what is small is staged, payloads leave at once.

        position - flushed bytes are staged:   [..... head ====== tail .....]

    A wait for the other side ends with OSError(ECANCELED) when `wake_fd` becomes readable; to be woken in a pipe, `fd`
    must be non-blocking. A broken peer is EPIPE, never SIGPIPE. After an error the stream is dead. A peer that takes
    less than `least_useful` bytes in an idle time is idle: see set_idle_timeout.

    With `seal`, as for TLS, what leaves is what `seal(view)` returns, bytes, for at most 256 KiB of what was put. The
    memory of `view` is valid during the call alone.
    """

    cdef stream s
    cdef bint shares
    cdef object seal

    def __cinit__(
        self, int fd, Py_ssize_t capacity=65536, /, *, int wake_fd=-1, uint32_t least_useful=1, seal=None
    ):
        stream_init(&self.s, fd, capacity, wake_fd)
        self.s.least_useful = least_useful
        self.s.takes_pages = self.s.takes_pages and seal is None
        self.seal = seal

    def __dealloc__(self):
        free(self.s.staging)

    @property
    def position(self):
        """Bytes put."""
        return self.s.position

    @property
    def flushed(self):
        """Bytes that the kernel took."""
        return self.s.flushed

    def put_byte(self, uint8_t value, /):
        """Put an 8-bit number."""
        self.put_number(value, 1)

    def put_be16(self, uint16_t value, /):
        """Put a 16-bit number, big-endian."""
        self.put_number(value, 2)

    def put_be32(self, uint32_t value, /):
        """Put a 32-bit number, big-endian."""
        self.put_number(value, 4)

    def put_be64(self, uint64_t value, /):
        """Put a 64-bit number, big-endian."""
        self.put_number(value, 8)

    def put_buffer(self, buffer, /):
        """Put the bytes of `buffer`: staged if they fit, else sent from where they are."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            stream_check(&self.s)
            if <size_t>view.len <= self.s.capacity - self.s.tail:
                memcpy(self.s.staging + self.s.tail, view.buf, view.len)
                stream_staged(&self.s, view.len)
            else:
                self.send(<const uint8_t*>view.buf, view.len, None)
        finally:
            PyBuffer_Release(&view)

    def put_block_header(self, uint64_t sector, uint64_t flags, bytes name not None, /):
        """Put a record's word and name. OverflowError if sector, flags or name do not fit."""
        check_record(sector, flags, name)
        self.head(sector << SECTOR_BITS | flags, name)

    def put_zero_records(self, uint64_t sector, uint64_t count, bytes name not None, /):
        """Put `count` zero-block records, at `sector` and every 2048 sectors on; they leave with what follows."""
        cdef size_t length = len(name), room
        cdef uint8_t* p
        check_zero_run(sector, count, name)
        while count:
            p = self.reserve(9 + length)
            room = min(count, <uint64_t>((self.s.capacity - self.s.tail) // (9 + length)))
            frame_zero_records(p, sector << SECTOR_BITS, room, PyBytes_AS_STRING(name), length)
            stream_staged(&self.s, room * (9 + length))
            sector += room * SECTORS_PER_BLOCK
            count -= room

    def put_block(self, uint64_t sector, uint64_t flags, bytes name not None, BlockBuffer blk not None, /):
        """Put a record and its payload: in one system call if the payload is copied and the kernel takes all of it.

        With FLAG_ZERO_BLOCK in `flags` the record has no payload and is staged. A mapped payload whose pages have gone
        is read into the block's own bytes, and the send goes on from the byte where it stopped.
        """
        self.put_block_header(sector, flags, name)
        if not flags & FLAG_ZERO_BLOCK:
            self.send(NULL, BLOCK_SIZE, blk)

    def put_pack_header(self, uint64_t flags, bytes name not None, list extents not None, /):
        """Put a pack's word, name and list of extents, each (offset, nbytes); return the length of its payload.

        ValueError unless they are 1 to 256 whole sectors, ascending, apart from each other, 1 MiB together.
        """
        cdef uint64_t pairs[2 * FRAME_EXTENTS_MAX]
        cdef size_t n = extents_of(extents, pairs), total, i
        cdef const char* why = frame_check_extents(pairs, n, &total)
        if why != NULL:
            raise ValueError(f"{why.decode()}: {extents}")
        check_record(n, flags, name)
        self.head(n << SECTOR_BITS | flags, name)
        for i in range(n):
            frame_put_extent(self.reserve(FRAME_EXTENT_NBYTES), pairs + 2 * i)
            stream_staged(&self.s, FRAME_EXTENT_NBYTES)
        return total

    def put_pack(self, uint64_t flags, bytes name not None, list extents not None, BlockBuffer blk not None, /):
        """Put a pack and its payload, the own bytes of `blk`: in one system call if the kernel takes all of it."""
        if blk.mapping is not None:
            raise ValueError("the payload of a pack is in the block's own bytes: see fill_extents")
        self.send(NULL, self.put_pack_header(flags, name, extents), blk)

    def put_payload(self, BlockBuffer blk not None, Py_ssize_t offset, Py_ssize_t nbytes, /):
        """Put a slice of the payload of `blk`, for senders that pace within a block; as put_block does it."""
        if offset < 0 or nbytes < 0 or offset > BLOCK_SIZE - nbytes:
            raise IndexError(f"{nbytes} bytes at offset {offset} are not inside a block")
        self.send(NULL, nbytes, blk, offset)

    def put_file_blocks(
        self, Mapping mapping not None, uint64_t block, uint64_t count, bytes name not None, BlockBuffer blk not None,
        Bitmap dirty not None, size_t bits_per_block, double seconds, /
    ):
        """Put up to `count` whole blocks of a file from `block` on, each through `blk`, and return how many.

        Each block's bits are cleared before it is read. It ends when `seconds` are over, and at the first block that is
        zero or cannot be read: of that one the bits are cleared and nothing is put.
        """
        cdef uint64_t i = 0
        cdef double end = io_seconds() + seconds
        check_record(0, 0, name)
        if count > mapping.length // BLOCK_SIZE or block > mapping.length // BLOCK_SIZE - count:
            raise IndexError(f"{count} blocks from {block} are not inside a mapping of {mapping.length} bytes")
        if bits_per_block > BLOCK_SIZE:
            raise ValueError(f"a block cannot have {bits_per_block} bits")
        check_range(dirty, block * bits_per_block, count * bits_per_block)
        while i < count and (i == 0 or io_seconds() < end):
            clear_bits(dirty, (block + i) * bits_per_block, (block + i + 1) * bits_per_block)
            try:
                read_block_mapped(blk, mapping, mapping.fd, (block + i) * BLOCK_SIZE, BLOCK_SIZE)
            except OSError:
                break
            if blk.zero:
                break
            self.head((block + i) * SECTORS_PER_BLOCK << SECTOR_BITS | FLAG_DEVICE_BLOCK, name)
            self.send(NULL, BLOCK_SIZE, blk)
            i += 1
        return i

    @property
    def keeps_pages(self):
        """Whether the pages of given payloads may stand in `fd` until they are read: it is a pipe."""
        return self.s.is_fifo != 0

    @property
    def takes_pages(self):
        """Whether a file's pages may stand in `fd`: it is a pipe or a socket, and does not block."""
        return self.s.takes_pages != 0

    def share_pages(self):
        """Hand over the pages of mapped payloads, not copies, and tell whether `fd` takes them: if it does not block.

        What is written to the pages before the peer reads them, it reads.
        """
        self.shares = self.s.takes_pages
        return self.shares

    def set_idle_timeout(self, double seconds, /):
        """Let waits end with OSError(ETIME) when the peer took nothing useful in `seconds` of them; 0 is for ever."""
        self.s.idle = self.s.first = seconds

    def flush(self):
        """Hand everything that is staged to the kernel."""
        self.send(NULL, 0, None)

    cdef uint8_t* reserve(self, size_t n) except NULL:
        # Room for n bytes, n <= HEADER_MAX.
        stream_check(&self.s)
        if n > self.s.capacity - self.s.tail:
            self.send(NULL, 0, None)
        return self.s.staging + self.s.tail

    cdef int head(self, uint64_t word, bytes name) except -1:
        cdef uint8_t* p = self.reserve(HEADER_MAX)
        stream_staged(&self.s, frame_head(p, word, PyBytes_AS_STRING(name), len(name)))
        return 0

    cdef int put_number(self, uint64_t value, size_t n) except -1:
        frame_put_number(self.reserve(n), value, n)
        stream_staged(&self.s, n)
        return 0

    cdef int send(self, const uint8_t* p, size_t n, BlockBuffer blk, size_t offset=0) except -1:
        # What is staged, then n bytes at p, or at `offset` of the payload of blk.
        stream_check(&self.s)
        if blk is not None:
            begin_block(blk)
            blk.sending = True
        self.s.busy = True
        try:
            self.s.position += n
            if self.seal is None:
                return self.send_all(p, n, blk, offset)
            if blk is not None:         # nobody but the kernel touches a mapping
                self.take_back(blk)
                p = blk.own + offset
            return stream_seal(&self.s, self.seal, p, n)
        finally:
            self.s.busy = False
            if blk is not None:
                blk.busy = blk.sending = False

    cdef int take_back(self, BlockBuffer blk) except -1:
        # The file may be truncated, or cannot be read there: pread() tells.
        try:
            return take_block_back(blk)
        except OSError as failure:
            unreadable = PayloadError(failure.errno, failure.strerror)
            unreadable.offset = blk.offset
            raise unreadable from failure

    cdef int send_all(self, const uint8_t* p, size_t n, BlockBuffer blk, size_t offset) except -1:
        cdef size_t left = n
        cdef int error, file
        cdef bint mapped
        while True:
            mapped = blk is not None and blk.mapping is not None
            file = blk.mapping.fd if mapped and self.shares else STREAM_COPIES
            if blk is not None:
                p = (blk.mapping.base + blk.offset if mapped else blk.own) + offset
                if blk.gifts != NULL and not blk.exports and self.s.is_fifo:
                    file = STREAM_GIVES
                    blk.gave = True
            with nogil:
                error = stream_send(&self.s, p + n, &left, file, 0 if file < 0 else blk.offset + offset + n, mapped)
            if error == 0:
                return 0
            if not mapped:
                return io_fail(error)
            self.take_back(blk)
