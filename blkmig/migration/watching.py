# SPDX-License-Identifier: GPL-2.0-or-later
"""The writers of disks, watched for a few seconds: which pieces they write, and in how many short intervals.

In each interval the marks are taken, so that it is known of each piece how often it was written.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import _core, disk
from ..block import bulk

SAMPLES = 20


class WatchedDisk:
    """What was seen of one disk, of each of its pieces: a block, or what a bit of `bitmap` stands for.

    A piece is what a write to it costs: with `whole`, a block. A table has a byte for each, of which those that were
    written take memory.
    """

    def __init__(self, backend: disk.BlockBackend, bitmap: disk.DirtyBitmap, *, whole: bool = True) -> None:
        self.backend = backend
        self._bitmap = bitmap
        self.nblocks = bitmap.nblocks
        self.pieces = 1 if whole else bitmap.bits_per_block
        """Pieces of a block."""

        self.seen = _core.Bitmap(self.nblocks * self.pieces)
        """The pieces that were written."""

        self.hits = bytearray(self.nblocks * self.pieces)
        """Intervals in which a piece was written."""

        self.visits = bytearray(self.nblocks * self.pieces)
        """The same, but intervals in a row count as one: a writer that passes slowly visits each piece once."""

        self.touched = bytearray(self.nblocks)
        """Intervals in which any piece of a block was written."""

        self._last_hit = bytearray(self.nblocks * self.pieces)
        self._last_touched = bytearray(self.nblocks)
        self.data = bytearray(self.nblocks)
        """1 for a block that bulk reads."""

    def take(self, interval: int) -> None:
        """Count the pieces that were written in interval number `interval`, from 1 on."""
        bits, each, start = self._bitmap.bits, self._bitmap.bits_per_block // self.pieces, 0
        while areas := bits.take_areas(start):
            for bit, count in areas:
                self.count(bit // each, (bit + count - 1) // each + 1, interval)
            start = sum(areas[-1])  # what is written behind the cursor meanwhile is for the next interval

    def count(self, first: int, stop: int, interval: int) -> None:
        """Count that the pieces [first, stop) were written in interval number `interval`."""
        for block in range(first // self.pieces, (stop - 1) // self.pieces + 1):
            self.touched[block] += self._last_touched[block] != interval
            self._last_touched[block] = interval
        hits, visits, last_hit = self.hits, self.visits, self._last_hit
        self.seen.set_range(first, stop - first)
        for piece in range(first, stop):
            if last_hit[piece] == interval:  # another bit of it
                continue
            hits[piece] += 1
            if last_hit[piece] != interval - 1 or interval == 1:
                visits[piece] += 1
            last_hit[piece] = interval

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

    def written_bytes(self) -> int:
        """Return how much was written while it was watched, in whole pieces."""
        return self.seen.count() * _core.BLOCK_SIZE // self.pieces


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
