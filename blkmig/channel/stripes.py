# SPDX-License-Identifier: GPL-2.0-or-later
"""One stream over several connections: it is cut into chunks, each of which goes over one of them.

::

    chunk    u64 number | u32 bytes | the bytes          numbers 0, 1, 2 ... over all connections together
    end      u64 number | u32 0                          on each connection, the number of chunks that there were

On one connection numbers only grow, and the stream is the chunks in the order of their numbers. So what comes late on
a slow connection comes late, and nothing overtakes it.

Whoever receives holds one chunk of each connection. The next chunk of the stream is always the first one that is unread
on its connection, so it can always be read: nobody waits for good, and what is held is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import Any

from . import link

CHUNK_NBYTES = 1 << 18
"""The most bytes of a chunk. What is there leaves at once, so there are shorter ones."""

HEADER = struct.Struct(">QI")


class BadChunk(OSError):
    """What came is no chunk that could come; the text says why."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EBADMSG, f"the connections of the stream do not fit together: {why}")
        self._why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._why,), self.__dict__


class SendingLane:
    """One of the connections, as far as chunks are sent on it. Nothing waits."""

    def __init__(self, transport: link.Transport) -> None:
        assert transport.socket is not None
        self.transport = transport
        self.socket = transport.socket
        self.fd = transport.socket.fileno()
        self._chunk = memoryview(bytearray(HEADER.size + CHUNK_NBYTES))
        self.room = self._chunk[HEADER.size :]
        """Where the bytes of the next chunk go."""

        self.unsent = memoryview(b"")
        self.has_ended = False
        """The end has been put."""

    def put(self, number: int, nbytes: int) -> None:
        """Make the first `nbytes` of `room` chunk `number`, of which nothing has been sent. Raises OSError."""
        HEADER.pack_into(self._chunk, 0, number, nbytes)
        self.unsent = self._chunk[: HEADER.size + nbytes]
        if self.transport.seal is not None:
            self.unsent = memoryview(self.transport.seal(self.unsent))

    def put_end(self, count: int) -> None:
        """Have the end follow, behind `count` chunks on all connections together."""
        self.put(count, 0)
        self.has_ended = True

    def send(self) -> int:
        """Hand over what the socket takes now, and return how much that was. Raises OSError."""
        try:
            nbytes = self.socket.send(self.unsent)
        except BlockingIOError:
            return 0
        self.unsent = self.unsent[nbytes:]
        return nbytes


class ReceivingLane:
    """One of the connections, as far as chunks are received on it. Nothing waits."""

    def __init__(self, transport: link.Transport) -> None:
        assert transport.socket is not None
        self.transport = transport
        self.socket = transport.socket
        self.fd = transport.socket.fileno()
        with contextlib.suppress(OSError):  # it may be woken for whole payloads by now
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._header = memoryview(bytearray(HEADER.size))
        self._room = memoryview(bytearray(CHUNK_NBYTES))
        self._came = 0  # bytes of the header and the payload
        self._least = 0
        self._nbytes = 0
        self.number = -1
        """The number of the chunk that is coming, or has come."""

        self.has_chunk = False
        """All of it has come, and `chunk` is what of it has not been delivered."""

        self.chunk = memoryview(b"")
        self.has_ended = False
        """The end has come; `number` is how many chunks there must be."""

    @property
    def is_read(self) -> bool:
        """Whether there is anything to be read for."""
        return not (self.has_chunk or self.has_ended)

    def fill(self) -> bool:
        """Take what has come of the next chunk; False if the connection ends before it does.

        Raises OSError, :class:`BadChunk` among them.
        """
        while self.is_read:
            head = self._came < HEADER.size
            room = self._header[self._came :] if head else self._room[self._came - HEADER.size : self._nbytes]
            nbytes = self._receive(room)
            if nbytes is None:
                return True
            if not nbytes:
                return False
            self._came += nbytes
            if head and self._came == HEADER.size:
                self._begin()
            elif not head and self._came == HEADER.size + self._nbytes:
                self.chunk, self.has_chunk = self._room[: self._nbytes], True
        return True

    def _receive(self, room: memoryview) -> int | None:
        """Return the bytes that came into `room`, 0 at the end, None if there are none yet."""
        if self.transport.unseal is not None:
            return self.transport.unseal(room, True)
        try:
            return self.socket.recv_into(room)
        except BlockingIOError:
            return None

    def _begin(self) -> None:
        self.number, self._nbytes = HEADER.unpack(self._header)
        if self.number < self._least:
            raise BadChunk(f"chunk {self.number} comes behind chunk {self._least - 1}")
        if self._nbytes > CHUNK_NBYTES:
            raise BadChunk(f"chunk {self.number} has {self._nbytes} bytes, and {CHUNK_NBYTES} are the most")
        self._least = self.number + 1
        self.has_ended = not self._nbytes

    def delivered(self) -> None:
        """Begin with the next chunk."""
        self.has_chunk, self._came = False, 0


def next_of(lanes: list[ReceivingLane], number: int) -> ReceivingLane | None:
    """Return the connection whose chunk is `number`, None if it is still to come.

    Raises :class:`BadChunk` if it cannot come any more, or comes a second time.
    """
    for lane in lanes:
        if lane.has_chunk and lane.number == number:
            return lane
    for lane in lanes:
        if (lane.has_chunk or lane.has_ended) and lane.number < number:
            raise BadChunk(f"{number} chunks have come, and the next one has the number {lane.number}")
    if lanes and not any(lane.is_read for lane in lanes) and any(lane.number != number for lane in lanes):
        raise BadChunk(f"chunk {number} comes on none of them")
    return None


def explained(lanes: list[link.Transport], error: OSError) -> OSError:
    """Return `error` of one of the connections as the connection itself explains it, if one of them does."""
    return next((why for lane in lanes if (why := lane.why_broken()) is not None), error)
