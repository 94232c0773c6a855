# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""Byte streams with their staging buffers, payloads that pass through as pages, and the queue that stores behind them.

Knows no policy: depths, patience and who shares pages are said by whoever makes the objects. Errors, the GIL, EINTR
and what counts as a number are as in `_core`, whose blocks and bitmaps go through here. An object belongs to one thread
at a time, and refuses while another thread is in it.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ECHILD
from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from ._core cimport (
    BLOCK_SIZE, FLAG_DEVICE_BLOCK, FLAG_MASK, FLAG_ZERO_BLOCK, GIL_NBYTES, PAYLOAD_PIPED, SECTOR_BITS,
    SECTORS_PER_BLOCK, Bitmap, BlockBuffer, Mapping, begin_block, check_range, check_record, check_zero_run, clear_bits,
    forget_block, load_be16, load_be32, load_be64, read_block_mapped, store_payload, take_block_back,
)
from .c.fail cimport io_fail
from .c.fork cimport fork_count, fork_watch
from .c.frame cimport frame_head, frame_parse, frame_put_number, frame_run, frame_zero_records
from .c.pipes cimport pipes_held, pipes_open, pipes_read
from .c.storing cimport (
    storing, storing_close, storing_drain, storing_free, storing_init, storing_next, storing_put, storing_slot,
)
from .c.stream cimport (
    io_seconds, pipes_take, stream, stream_break, stream_check, stream_consume, stream_init, stream_need, stream_send,
    stream_skip, stream_skip_words, stream_staged, stream_take, stream_unpeek, stream_unstage,
)


cdef extern from "c/index.h":
    pass

cdef enum:
    HEADER_MAX = 8 + 1 + 255        # word, length byte, name
    DEPTH_MAX = 64                  # blocks of a storing queue, each a MiB

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
    """

    cdef stream s
    cdef bint shares

    def __cinit__(self, int fd, Py_ssize_t capacity=65536, /, *, int wake_fd=-1, uint32_t least_useful=1):
        stream_init(&self.s, fd, capacity, wake_fd)
        self.s.least_useful = least_useful

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
            return self.send_all(p, n, blk, offset)
        finally:
            self.s.busy = False
            if blk is not None:
                blk.busy = blk.sending = False

    cdef int send_all(self, const uint8_t* p, size_t n, BlockBuffer blk, size_t offset) except -1:
        cdef size_t left = n
        cdef int error, file
        cdef bint mapped
        while True:
            mapped = blk is not None and blk.mapping is not None
            file = blk.mapping.fd if mapped and self.shares else -1
            if blk is not None:
                p = (blk.mapping.base + blk.offset if mapped else blk.own) + offset
            with nogil:
                error = stream_send(&self.s, p + n, &left, file, 0 if file < 0 else blk.offset + offset + n, mapped)
            if error == 0:
                return 0
            if not mapped:
                return io_fail(error)
            try:
                take_block_back(blk)         # the file was truncated, or cannot be read there: pread() tells
            except OSError as failure:
                unreadable = PayloadError(failure.errno, failure.strerror)
                unreadable.offset = blk.offset
                raise unreadable from failure


@cython.final
cdef class InputBuffer:
    """Bytes that come out of `fd`, a socket, a pipe or a file; payloads go straight to their block.

    A wait for the other side ends with OSError(ECANCELED) when `wake_fd` becomes readable. The end of the stream inside
    an item is EOFError. After either the stream is dead. `begun` is what somebody has read of the stream already.

    How it reads is said by who makes it. Behind a payload, `read_ahead` bytes of what follows are staged in the same
    call. With `most_lowat`, for a TCP socket alone, waits for a payload end when all of it has come, or so much
    (SO_RCVLOWAT). `linger_nbytes` of a next payload are given `linger_seconds` to arrive before they are waited for. A
    peer that sends less payload than `least_useful` in an idle time is idle, and one that sends more than
    `most_chatter` without any (0: as much as it likes) is cut off: see set_idle_timeout.
    """

    cdef stream s
    cdef bint expects               # payloads are pages on their way here, and may stay pages

    def __cinit__(
        self, int fd, Py_ssize_t capacity=65536, /, *, int wake_fd=-1, bytes begun=b"", uint16_t read_ahead=512,
        uint32_t most_lowat=0, uint32_t linger_nbytes=0, double linger_seconds=0.0, uint32_t least_useful=1,
        uint32_t most_chatter=0
    ):
        stream_init(&self.s, fd, capacity, wake_fd)
        if not 0 <= linger_seconds < 1:
            raise ValueError(f"to linger takes 0 to 1 seconds, not {linger_seconds}")
        if not 1 <= read_ahead <= capacity or most_lowat > <uint32_t>INT_MAX:
            raise ValueError(f"a stream does not read {read_ahead} bytes ahead or wait for {most_lowat}")
        self.s.read_ahead = read_ahead
        self.s.most_lowat = most_lowat
        self.s.linger_nbytes = linger_nbytes
        self.s.linger.tv_nsec = <long>(linger_seconds * 1e9)
        self.s.least_useful = least_useful
        self.s.most_chatter = most_chatter
        if len(begun) > capacity:
            raise ValueError(f"{len(begun)} bytes do not fit a staging buffer of {capacity}")
        memcpy(self.s.staging, PyBytes_AS_STRING(begun), len(begun))
        self.s.tail = len(begun)

    def set_idle_timeout(self, double seconds, double first, /):
        """Let waits end with OSError(ETIME) when no useful payload came in `seconds` of them; 0 is for ever.

        Payload is what get_block, get_buffer, get_some and skip got, and zero records. More than `most_chatter` bytes
        without any are OSError(EPROTO). Until the first byte, `first` seconds are waited; 0 is for ever.
        """
        self.s.idle = seconds
        self.s.first = first

    def __dealloc__(self):
        free(self.s.staging)

    @property
    def position(self):
        """Bytes consumed."""
        return self.s.position

    def payload_came(self):
        """Say that what was got counts as payload, which begins a new idle time."""
        self.s.useful += self.s.least_useful

    def get_byte(self):
        """Get an 8-bit number."""
        return self.take(1)[0]

    def get_be16(self):
        """Get a 16-bit big-endian number."""
        return load_be16(self.take(2))

    def get_be32(self):
        """Get a 32-bit big-endian number."""
        return load_be32(self.take(4))

    def get_be64(self):
        """Get a 64-bit big-endian number."""
        return load_be64(self.take(8))

    def get_buffer(self, Py_ssize_t nbytes, /):
        """Get the next `nbytes` bytes. The memory for them is allocated first: check the number."""
        if nbytes < 0:
            raise ValueError(f"cannot get {nbytes} bytes")
        cdef bytes result = PyBytes_FromStringAndSize(NULL, nbytes)
        self.take_to(<uint8_t*>PyBytes_AS_STRING(result), nbytes)
        return result

    @property
    def staged(self):
        """Bytes that have arrived and are not consumed: so many can be had without waiting."""
        return self.s.tail - self.s.head

    def get_some(self, Py_ssize_t nbytes, /):
        """Get 1 to `nbytes` bytes: what is staged, else what the next read brings; b"" at the end."""
        if nbytes <= 0:
            raise ValueError(f"cannot get {nbytes} bytes")
        try:
            self.require(1)
        except EOFError:
            return b""
        cdef size_t n = min(<size_t>nbytes, self.s.tail - self.s.head)
        result = PyBytes_FromStringAndSize(<const char*>self.s.staging + self.s.head, n)
        stream_consume(&self.s, n)
        self.s.useful += n
        return result

    def peek_byte(self):
        """Return the next byte without consuming it; EOFError at the end of the stream."""
        self.require(1)
        return self.s.staging[self.s.head]

    def skip(self, uint64_t nbytes, bint useful=True, /):
        """Drop the next `nbytes` bytes; they are payload if they are `useful`."""
        stream_skip(&self.s, nbytes, useful)

    def skip_words(self, uint64_t mask, uint64_t a, uint64_t a_nbytes, uint64_t b, uint64_t b_nbytes, /):
        """Drop words that are `a` or `b` under `mask`, each with the bytes behind it, and get the first other word.

        After 65,536 of them the next one is got, whatever it is, so that signals and cancels are heard.
        """
        return stream_skip_words(&self.s, mask, a, a_nbytes, b, b_nbytes)

    def next_run(self):
        """Get the next record, with the zero records behind it that continue it and have arrived.

        Returns (flags, name, sector, count) as parse_run does. The payload of a data record is next: get_block.
        """
        stream_check(&self.s)
        cdef frame_run run = frame_parse(self.s.staging + self.s.head, self.s.tail - self.s.head)
        while not run.nbytes:
            self.require(self.s.tail - self.s.head + 1)
            run = frame_parse(self.s.staging + self.s.head, self.s.tail - self.s.head)
        name = PyBytes_FromStringAndSize(run.name, run.length)
        stream_consume(&self.s, run.nbytes)
        if run.word & FLAG_DEVICE_BLOCK and run.word & FLAG_ZERO_BLOCK:
            self.s.useful += self.s.least_useful
        self.s.peeks = False
        if not run.word & FLAG_DEVICE_BLOCK:
            stream_unpeek(&self.s, 0)   # whoever closes the socket must not leave anything in it
        elif self.expects:              # after data, the next head and none of its payload
            self.s.peeks = run.word & FLAG_ZERO_BLOCK != 0
            self.s.ahead = 0 if self.s.peeks else run.nbytes
        return run.word & FLAG_MASK, name, run.word >> SECTOR_BITS, run.count

    def expect_pages(self, bint naps=False, /):
        """Say that payloads are pages, on this machine: if `fd` does not block, they may pass through as such.

        With `naps` what has not come is looked for again after `linger_seconds`, without being seen to wait for it.
        """
        self.expects = self.s.takes_pages
        self.s.naps = naps

    def get_block(self, BlockBuffer blk not None, /):
        """Get a payload, 1 MiB, into the own bytes of `blk`. It is not scanned: `is_zero` is False afterwards.

        After an error `blk` holds part of the payload.
        """
        stream_check(&self.s)
        forget_block(blk, BLOCK_SIZE)
        begin_block(blk)
        self.s.busy = True
        try:
            blk.zero = False
            self.get_payload(blk)
        finally:
            blk.busy = self.s.busy = False

    cdef int get_payload(self, BlockBuffer blk) except -1:
        cdef size_t done = 0
        if self.expects and blk.which == PAYLOAD_PIPED and stream_unstage(&self.s) and pipes_open(blk.pipes):
            with nogil:
                done = pipes_take(blk.pipes, &self.s, BLOCK_SIZE)
            if done == BLOCK_SIZE:
                return 0
            self.expects, self.s.ahead, self.s.naps = False, 0, False     # smaller pieces than pages: copies are faster
            pipes_read(blk.pipes, blk.own)
        with nogil:
            stream_take(&self.s, blk.own + done, BLOCK_SIZE - done)
        return 0

    cdef int require(self, size_t n) except -1:
        return stream_need(&self.s, n)

    cdef const uint8_t* take(self, size_t n) except NULL:
        # The bytes stay where they are until the next read.
        self.require(n)
        cdef const uint8_t* p = self.s.staging + self.s.head
        stream_consume(&self.s, n)
        return p

    cdef int take_to(self, uint8_t* p, size_t n) except -1:
        stream_check(&self.s)
        if n <= self.s.tail - self.s.head and n < GIL_NBYTES:
            return stream_take(&self.s, p, n)
        self.s.busy = True
        try:
            with nogil:
                stream_take(&self.s, p, n)
        finally:
            self.s.busy = False
        return 0


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
