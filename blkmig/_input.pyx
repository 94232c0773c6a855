# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The receiving end of a byte stream: a staging buffer, and payloads that go straight to their block, or stay pages.

Knows no policy: how to read, patience and who shares pages are said by whoever makes the object. Errors, the GIL, EINTR
and what counts as a number are as in `_core`, whose blocks are filled here. An object belongs to one thread at a time,
and refuses while another thread is in it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.limits cimport INT_MAX
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from ._core cimport (
    BLOCK_SIZE, FLAG_DEVICE_BLOCK, FLAG_MASK, FLAG_ZERO_BLOCK, GIL_NBYTES, PAYLOAD_PIPED, SECTOR_BITS, BlockBuffer,
    begin_block, forget_block, load_be16, load_be32, load_be64,
)
from .c.fork cimport fork_watch
from .c.frame cimport (
    FRAME_EXTENT_NBYTES, FRAME_EXTENTS_MAX, frame_check_extents, frame_get_extent, frame_parse, frame_run,
)
from .c.pipes cimport pipes_open, pipes_read
from .c.stream cimport stream, stream_check, stream_init
from .c.stream_read cimport (
    pipes_take, stream_consume, stream_need, stream_skip, stream_skip_words, stream_take, stream_unpeek, stream_unstage,
)
from .c.stream_seal cimport stream_unseal


cdef extern from "c/index.h":
    pass

fork_watch()


@cython.final
cdef class InputBuffer:
    """Bytes that come out of `fd`, a socket, a pipe or a file; payloads go straight to their block.

    A wait for the other side ends with OSError(ECANCELED) when `wake_fd` becomes readable. The end of the stream inside
    an item is EOFError. After either the stream is dead. `begun` is what somebody has read of the stream already.

    How it reads is said by who makes it. Behind a payload, `read_ahead` bytes of what follows are staged in the same
    call. With `most_lowat`, for a TCP socket alone, waits for a payload end when all of it has come, or so much
    (SO_RCVLOWAT). Behind a payload of `linger_nbytes` or more, as many of the next one are given `linger_seconds` to
    arrive before they are waited for. A peer that sends less payload than `least_useful` in an idle time is idle, and
    one that sends more than `most_chatter` without any (0: as much as it likes) is cut off: see set_idle_timeout.

    What comes sealed, as by TLS, is opened by `unseal(room, many)`. It reads `fd` itself, without waiting, and fills the
    memoryview `room` with as many records as fit, or with one. It returns the bytes, 0 at the end of the stream, and
    None if nothing has come. The memory of `room` is valid during the call alone.
    """

    cdef stream s
    cdef object opener              # `unseal`, which the stream has a pointer to
    cdef bint expects               # payloads are pages on their way here, and may stay pages

    def __cinit__(
        self, int fd, Py_ssize_t capacity=65536, /, *, int wake_fd=-1, bytes begun=b"", uint16_t read_ahead=512,
        uint32_t most_lowat=0, uint32_t linger_nbytes=0, double linger_seconds=0.0, uint32_t least_useful=1,
        uint32_t most_chatter=0, unseal=None
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
        self.opener = unseal
        if unseal is not None:
            self.s.owner, self.s.unseal = <void*>unseal, stream_unseal
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
        self.expects = self.s.takes_pages and self.s.unseal == NULL
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

    def get_pack_header(self, uint64_t count, /):
        """Get what stands behind a pack's word, of `count` extents: (name, [(offset, nbytes)]).

        ValueError unless put_pack_header would put it. The payload is next: get_pack_payload.
        """
        cdef uint8_t wire[FRAME_EXTENT_NBYTES * FRAME_EXTENTS_MAX]
        cdef uint64_t pairs[2 * FRAME_EXTENTS_MAX]
        cdef size_t total, i
        cdef const char* why = NULL
        if not 1 <= count <= FRAME_EXTENTS_MAX:
            raise ValueError(f"a pack has 1 to {FRAME_EXTENTS_MAX} extents, not {count}")
        i = self.take(1)[0]
        name = PyBytes_FromStringAndSize(<const char*>self.take(i), i)
        self.take_to(wire, FRAME_EXTENT_NBYTES * count)
        for i in range(count):
            frame_get_extent(wire + FRAME_EXTENT_NBYTES * i, pairs + 2 * i)
        why = frame_check_extents(pairs, count, &total)
        if why != NULL:
            raise ValueError(why.decode())
        return name, [(pairs[2 * i], pairs[2 * i + 1]) for i in range(count)]

    def get_pack_payload(self, BlockBuffer blk not None, Py_ssize_t nbytes, /):
        """Get a pack's payload of `nbytes` into the own bytes of `blk`, as get_block does; it is always copied."""
        stream_check(&self.s)
        forget_block(blk, nbytes)
        begin_block(blk)
        self.s.busy = True
        try:
            blk.zero = False
            with nogil:
                stream_take(&self.s, blk.own, nbytes)
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
