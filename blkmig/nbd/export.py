# SPDX-License-Identifier: GPL-2.0-or-later
"""An NBD export as a disk uses it: the verbs of a disk, on a connection, its extents, and its writes in flight.

Zeros are sent as WRITE_ZEROES, never as TRIM, which a server may ignore. Those that a whole cluster of a block has are;
others are only where the disk does not read as zeros yet, because many servers allocate what they zero.
"""

from __future__ import annotations

from collections.abc import Iterable

from .. import _core
from . import connection as nbd_connection
from . import extents, inflight

ZERO_CLUSTER = 65536
"""Bytes that a block's zeros must fill, aligned, to be sent as zeros."""


class Export:
    """The export that `connection` has open, which is closed with it. Any thread may call anything."""

    def __init__(self, connection: nbd_connection.NbdConnection) -> None:
        self.connection = connection
        self.extents = extents.Extents(connection)
        self._writes = inflight.WritesInFlight(connection)

    @property
    def size(self) -> int:
        """Bytes of the export."""
        return self.connection.size

    def pread_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with what is at `offset`, which what is in flight there has reached before."""
        self._writes.finish_overlapping(offset, view.nbytes)
        self.connection.pread_into(view, offset)

    def pread_each(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        """Fill several views, each from its offset on, behind what is in flight."""
        self._writes.finish_all()
        self.connection.pread_each(parts)

    def pwrite_each(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        """Write several views, each at its offset, now."""
        self.extents.forget()
        self._writes.write_together(parts)

    def write_block(self, payload: memoryview, offset: int, nbytes: int) -> None:
        """Put the first `nbytes` of `payload` on their way; an error comes with this call or a later one."""
        self.extents.forget()
        for start, stop, is_zero in zero_runs(payload, offset, nbytes):
            if is_zero and self.connection.can_zero:
                self._writes.finish_overlapping(offset + start, stop - start)
                self.connection.zero(offset + start, stop - start)
            else:
                self._writes.write(payload[start:stop], offset + start)

    def pwrite(self, view: memoryview, offset: int) -> None:
        """Write `view` now."""
        self._writes.finish_overlapping(offset, view.nbytes)
        self.connection.pwrite(view, offset)

    def pwrite_zeroes(self, offset: int, nbytes: int) -> None:
        """Make a range read as zeros, where it does not yet."""
        self._writes.finish_overlapping(offset, nbytes)
        if nbd_connection.BASE_ALLOCATION not in self.connection.contexts:
            self.connection.zero(offset, nbytes)
            return
        for length, flags in self.connection.block_status(nbd_connection.BASE_ALLOCATION, offset, nbytes):
            if not flags & nbd_connection.STATE_ZERO:
                self.connection.zero(offset, length)
            offset += length

    def finish_writes(self) -> None:
        """Return when nothing is in flight, or raise the first error."""
        self._writes.finish_all()

    def rest(self) -> None:
        """Finish what is in flight, and free the copies."""
        self._writes.rest()

    def flush(self) -> None:
        """Finish what is in flight, then let the server flush."""
        self._writes.finish_all()
        self.connection.flush()


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
