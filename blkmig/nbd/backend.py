# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk behind an NBD server.

As a source it is read by as many threads as there are buffers, straight into them. As a target it is written from the
buffer while the server is quick. A slow one is not waited for: a block is copied and in flight when `write_block`
returns, its error comes with a later call, at the latest with `flush`. Writes that overlap come one after the other,
because a server may reorder what is in flight::

    write_block   copy ─ start ─┐                  at most WRITES_IN_FLIGHT blocks are on their way
                                ├─ in flight ──►   oldest finished first; overlapped ones before the next begins
    flush         finish all ───┘ ─ FLUSH

Zeros are sent as WRITE_ZEROES, never as TRIM, which a server may ignore; and only where the disk does not read as
zeros yet, because many servers allocate what they zero.
"""

from __future__ import annotations

import collections
import threading
import time
from typing import Any

from .. import _core, errors, units
from ..disk import dirty, local
from . import connection as nbd_connection
from . import extents
from . import handle as nbd_handle
from . import uri as nbd_uri
from .connection import NbdConnection as NbdConnection

WRITES_IN_FLIGHT = 16
SLOW_WRITE = 0.002
"""Seconds from which on a write is worth a copy: of 1 MiB, a local server takes 0.5 to 1 ms, and copies cost a third of
its throughput; at 5 ms writes in flight are seven times as fast."""
SLOW_SPELL = 256
"""Writes after which a slow server is tried again."""
ZERO_CLUSTER = 65536
"""Bytes that a block's zeros must fill, aligned, to be sent as zeros."""


class NbdBackend(local.LocalBackend):
    """The disk at an NBD `uri`: nbd://, nbds://, nbd+unix:// or nbds+unix://.

    `name` is what the wire calls it, by default the export's name. `read_only` is a disk whose guest cannot write it;
    a migration skips it. With ``writable=False`` nobody writes it through this object; an export that the server offers
    read-only can only be opened so. Other parameters are those of :class:`~.connection.NbdConnection`.

    Threads of this process that write through `pwrite` are tracked as with any local disk; what other clients of
    the server write is not seen. The image behind it is locked, or not, by the server.
    """

    reads_in_parallel = True

    def __init__(
        self, uri: str, *, name: str | None = None, read_only: bool = False, writable: bool = True, **connect: Any
    ) -> None:
        units.check_flags(writable=writable)
        super().__init__(default_name(uri) if name is None else name, 0, read_only=read_only)
        self._writable = writable and not read_only
        self._connect(uri, **connect)

    def _connect(self, uri: str, **connect: Any) -> None:
        connection = nbd_connection.NbdConnection(
            uri,
            device=self.name,
            contexts=(nbd_connection.BASE_ALLOCATION, nbd_connection.ALLOCATION_DEPTH),
            is_cancelled=lambda: self._cancelled,
            **connect,
        )
        if self._writable and connection.is_read_only:
            connection.close()
            cause = f"the server offers it read-only [{uri}]"
            raise errors.DeviceError("cannot be written", device=self.name, cause=cause)
        self.size = connection.size
        self._connection = connection
        self._extents = extents.Extents(connection)
        self._writes = WritesInFlight(connection)

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block; drops the GIL."""
        if type(offset) is not int or type(nbytes) is not int:
            offset, nbytes = units.index(offset), units.index(nbytes)
        count = max(0, min(nbytes, self.size - offset))
        self._pread_into(blk.data[:count], offset)
        return blk.filled(count)

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self._writes.finish_overlapping(offset, view.nbytes)
        self._connection.pread_into(view, offset)

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Ask the server, in windows of up to 4 GiB."""
        return self._extents.next_data(units.index(offset))

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Ask a QEMU server what the top image of a chain holds."""
        return self._extents.next_allocated(units.index(offset), units.index(nbytes))

    # -- writing -----------------------------------------------------------------------------------------------------

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Start writing a block; its error comes with this call or a later one. Zero clusters are sent as zeros."""
        self._check_writable()
        offset, nbytes = self.check_range("cannot write", offset, nbytes)
        self._extents.forget()
        payload = blk.payload
        for start, stop, is_zero in zero_runs(payload, offset, nbytes):
            if is_zero and self._connection.can_zero:
                self._writes.finish_overlapping(offset + start, stop - start)
                self._connection.zero(offset + start, stop - start)
            else:
                self._writes.write(payload[start:stop], offset + start)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self._check_writable()
        self._writes.finish_overlapping(offset, view.nbytes)
        self._connection.pwrite(view, offset)

    def _pwrite_zeroes(self, offset: int, nbytes: int) -> None:
        self._check_writable()
        self._writes.finish_overlapping(offset, nbytes)
        if nbd_connection.BASE_ALLOCATION not in self._connection.contexts:
            self._connection.zero(offset, nbytes)
            return
        for length, flags in self._connection.block_status(nbd_connection.BASE_ALLOCATION, offset, nbytes):
            if not flags & nbd_connection.STATE_ZERO:
                self._connection.zero(offset, length)
            offset += length

    def create_dirty_bitmap(self, granularity: int) -> dirty.DirtyBitmap:
        """Start tracking. Answers about where data lies are forgotten: before this, writes were not seen."""
        self._renew()
        bitmap = super().create_dirty_bitmap(granularity)
        self._extents.forget()
        return bitmap

    def _renew(self) -> None:
        """Be of use again after a `cancel`."""
        self._cancelled = False
        if not self._connection.renew():
            self.check_open()
            self._connection.close()
            self._connection.reconnect()
            self._writes = WritesInFlight(self._connection)

    def cancel(self) -> None:
        """End every wait for the server."""
        super().cancel()
        self._connection.cancel()

    def _mark(self, offset: int, nbytes: int) -> None:
        self._extents.forget()  # before the write is marked
        super()._mark(offset, nbytes)

    def rest(self) -> None:
        """Finish what is in flight, and free the copies."""
        self.check_open()
        self._writes.rest()

    def flush(self) -> None:
        """Finish what is in flight, then let the server flush."""
        self.check_open()
        self._writes.finish_all()
        self._connection.flush()

    def _check_writable(self) -> None:
        self.check_open()
        if not self._writable:
            raise errors.DeviceError("cannot be written", device=self.name, cause="it was opened for reading only")

    def _close(self) -> None:
        if not self._passages.is_foreign:  # a fork's child must not say good-bye on its parent's connection
            self._connection.close()


class WritesInFlight:
    """Writes on their way: at most WRITES_IN_FLIGHT, no two of which overlap, and none while the server is quick.

    Any thread may call it.
    """

    def __init__(self, connection: nbd_connection.NbdConnection) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # held while writes are started and finished
        self._in_flight: collections.deque[tuple[nbd_handle.Request, int, bytearray]] = collections.deque()
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
            while len(self._in_flight) >= WRITES_IN_FLIGHT:
                self._finish_oldest()
            copy = self._copy_of(data)
            request = self._connection.start_write(copy, offset)
            if request is not None:
                self._in_flight.append((request, offset, copy))

    def _write_now(self, data: memoryview, offset: int) -> None:
        self._finish_all()
        start = time.monotonic()
        self._connection.pwrite(data, offset)
        if time.monotonic() - start > SLOW_WRITE:
            self._slow_left = SLOW_SPELL

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
        if len(data) == _core.BLOCK_SIZE:
            self._spare.append(data)

    def _copy_of(self, data: memoryview) -> bytearray:
        """Return a copy of `data`, in memory that is touched already if there is some."""
        if data.nbytes != _core.BLOCK_SIZE or not self._spare:
            return bytearray(data)
        copy = self._spare.pop()
        copy[:] = data
        return copy


def zero_runs(payload: memoryview, offset: int, nbytes: int) -> list[tuple[int, int, bool]]:
    """Cut the first `nbytes` of a block's `payload`, to be written at `offset`, into runs (start, stop, is zero).

    Runs of zeros consist of whole clusters of the disk.
    """
    runs: list[tuple[int, int, bool]] = []
    start = 0
    while start < nbytes:
        stop = min(start + ZERO_CLUSTER - (offset + start) % ZERO_CLUSTER, nbytes)
        is_zero = stop - start == ZERO_CLUSTER and _core.buffer_is_zero(payload[start:stop])
        if runs and runs[-1][2] == is_zero:
            runs[-1] = (runs[-1][0], stop, is_zero)
        else:
            runs.append((start, stop, is_zero))
        start = stop
    return runs


def default_name(uri: str) -> str:
    """Return what the wire calls the disk at `uri`: the export's name, else where the server is."""
    export = nbd_uri.export_of(uri)
    return export.rpartition("/")[2] or "nbd"
