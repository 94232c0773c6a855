# SPDX-License-Identifier: GPL-2.0-or-later
"""The writers of disks, watched for a few seconds: which blocks they write, and in how many short intervals.

In each interval the marks are taken, so that it is known of each block how often it was written.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import _core, disk
from ..block import bulk

SAMPLES = 20


class WatchedDisk:
    """What was seen of one disk; a byte for each of its blocks in each of the tables."""

    def __init__(self, backend: disk.BlockBackend, bitmap: disk.DirtyBitmap) -> None:
        self.backend = backend
        self._bitmap = bitmap
        self.nblocks = bitmap.nblocks
        self.hits = bytearray(self.nblocks)
        """Intervals in which a block was written."""

        self.visits = bytearray(self.nblocks)
        """The same, but intervals in a row count as one: a writer that passes slowly visits each block once."""

        self._last_hit = bytearray(self.nblocks)
        self.data = bytearray(self.nblocks)
        """1 for a block that bulk reads."""

    def take(self, interval: int) -> None:
        """Count the blocks that were written in interval number `interval`, from 1 on."""
        block = self._bitmap.next_dirty(0)
        while block >= 0:
            self._bitmap.take_block(block)
            self.hits[block] += 1
            if self._last_hit[block] != interval - 1 or interval == 1:
                self.visits[block] += 1
            self._last_hit[block] = interval
            block = self._bitmap.next_dirty(block + 1)

    def find_data(self, *, shared_base: bool, holes_are_data: bool) -> None:
        """Look for the blocks that bulk reads: those that are not wholly in holes, or in the top layer."""
        if holes_are_data and not shared_base:
            self.data[:] = b"\1" * self.nblocks
            return
        offset = 0
        while (extent := self._next(offset, shared_base=shared_base)) is not None:
            first, stop = extent[0] // _core.BLOCK_SIZE, min(-(-extent[1] // _core.BLOCK_SIZE), self.nblocks)
            self.data[first:stop] = b"\1" * (stop - first)
            offset = extent[1]

    def _next(self, offset: int, *, shared_base: bool) -> tuple[int, int] | None:
        if not shared_base:
            return self.backend.next_data(offset)
        while offset < self.backend.size:
            extent = self.backend.next_allocated(offset, bulk.SEARCH_BYTES)
            if extent is not None:
                return extent
            offset += bulk.SEARCH_BYTES
        return None

    def data_bytes(self) -> int:
        """Return how many bytes of the disk bulk would read; the last block may be a short one."""
        beyond = self.nblocks * _core.BLOCK_SIZE - self.backend.size
        return self.data.count(1) * _core.BLOCK_SIZE - (beyond if self.data[-1] else 0)

    def count_written(self) -> int:
        """Return how many blocks were written while it was watched."""
        return self.nblocks - self.hits.count(0)


def watch(
    disks: list[WatchedDisk], seconds: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[float, int]:
    """Watch the writers; return the length of an interval by mean, and the number of intervals."""
    started = clock()
    for interval in range(1, SAMPLES + 1):
        sleep(seconds / SAMPLES)
        disk.sync_disks([known.backend for known in disks])
        for known in disks:
            known.take(interval)
    return (clock() - started) / SAMPLES, SAMPLES
