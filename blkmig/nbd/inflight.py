# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes that are on their way to a server: none while it is quick, several at once while it is slow.

While the server is quick, a block is written from its buffer. For a slow server the block is copied, and `write`
returns while it is on its way; a later call raises its error, `finish_all` at the latest. Writes that overlap are sent
one after the other, because a server may reorder requests that are in flight::

    write        copy ─ start ─┐                  at most WRITES_IN_FLIGHT blocks are on their way
                               ├─ in flight ──►   oldest finished first; overlapped ones before the next begins
    finish_all   finish all ───┘
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterable

from .. import _core, errors
from . import connection as nbd_connection
from . import requests

WRITES_IN_FLIGHT = 16
SLOW_WRITE = 0.002
"""A write that takes more seconds than this is worth a copy. A local server takes 0.5 to 1 ms for 1 MiB, and copies
would cost a third of its throughput; at 5 ms, several writes in flight are seven times as fast as one."""
SLOW_SPELL = 256
"""After so many writes it is measured again whether a slow server is quick now."""


class WritesInFlight:
    """Writes on their way: at most WRITES_IN_FLIGHT, no two of which overlap, and none while the server is quick.

    Any thread may call it.
    """

    def __init__(self, connection: nbd_connection.NbdConnection) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # held while writes are started and finished
        self._in_flight: collections.deque[tuple[requests.Request, int, bytearray | memoryview]] = collections.deque()
        self._spare: list[bytearray] = []
        self._slow_left = 0  # so many more writes are started and not waited for

    def write(self, data: memoryview, offset: int) -> None:
        """Write `data`, or copy it and start writing it. Blocks while too much, or what overlaps, is in flight."""
        with self._locked():
            self._finish_overlapping(offset, data.nbytes)
            if not self._slow_left:
                self._write_now(data, offset)
                return
            self._slow_left -= 1
            self._start(self._copy_of(data), offset)

    def _start(self, data: bytearray | memoryview, offset: int) -> None:
        while len(self._in_flight) >= WRITES_IN_FLIGHT:
            self._finish_oldest()
        request = self._connection.start_write(data, offset)
        if request is not None:
            self._in_flight.append((request, offset, data))

    def _write_now(self, data: memoryview, offset: int) -> None:
        self._finish_all()
        start = time.monotonic()
        self._connection.pwrite(data, offset)
        if time.monotonic() - start > SLOW_WRITE:
            self._slow_left = SLOW_SPELL

    def write_together(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        """Write several pieces, each at its offset, and return when all of them are written. Blocks."""
        with self._locked():
            try:
                for offset, data in parts:
                    self._finish_overlapping(offset, data.nbytes)
                    self._start(data, offset)
            finally:
                self._finish_all()  # nothing may read `parts` any more

    def finish_overlapping(self, offset: int, nbytes: int) -> None:
        """Return when nothing in flight overlaps the range. Blocks."""
        if self._in_flight:
            with self._locked():
                self._finish_overlapping(offset, nbytes)

    def finish_all(self) -> None:
        """Return when nothing is in flight, or raise the first error; then all else has been finished as well."""
        with self._locked():
            self._finish_all()

    def rest(self) -> None:
        """As `finish_all`; the memory of the copies is free then."""
        with self._locked():
            self._spare.clear()
            try:
                self._finish_all()
            finally:
                self._spare.clear()

    def _locked(self) -> threading.Lock:
        self._connection.check_home()  # first: nobody in a fork's child would give the lock back
        return self._lock

    def _finish_all(self) -> None:
        first_error: errors.DeviceError | None = None
        while self._in_flight:
            try:
                self._finish_oldest()
            except errors.DeviceError as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error

    def _finish_overlapping(self, offset: int, nbytes: int) -> None:
        while any(start < offset + nbytes and offset < start + len(data) for _, start, data in self._in_flight):
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        request, offset, data = self._in_flight.popleft()
        self._connection.finish_write(request, offset, len(data))
        if isinstance(data, bytearray) and len(data) == _core.BLOCK_SIZE:
            self._spare.append(data)

    def _copy_of(self, data: memoryview) -> bytearray:
        """Return a copy of `data`, in memory that is touched already if there is some."""
        if data.nbytes != _core.BLOCK_SIZE or not self._spare:
            return bytearray(data)
        copy = self._spare.pop()
        copy[:] = data
        return copy
