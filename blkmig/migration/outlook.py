# SPDX-License-Identifier: GPL-2.0-or-later
"""How much is left to be sent, and how long it may take. Progress reports say so; nothing is decided by it.

The bulk phase goes over the whole of each disk, but sends only its data. So the disks are asked ahead of the bulk phase
where their data lies, for a moment at a time, and only if somebody wants reports::

    disk    |####......##..####....................######|
             ▲ cur_sector     ▲ asked so far, counted in cells
             └── left: the data between the two, and behind them as much as the share of data so far lets expect

Everything belongs to the migration thread.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import _core, block, errors

if TYPE_CHECKING:
    from ..block import device

CELLS = 1024
"""What a disk's data is counted in: so much memory per disk, whatever its size."""

ASK_SECONDS = 0.002
"""How long a report may ask disks for their data: two hundredths of the time between two reports."""

RATE_SECONDS = 3.0
"""Rates are told for about that long."""


class Rate:
    """How fast a figure that only grows has grown, of late."""

    def __init__(self) -> None:
        self._samples: collections.deque[tuple[float, float]] = collections.deque(maxlen=64)

    def add(self, now: float, value: float) -> None:
        """Take note of the figure at the time `now`."""
        self._samples.append((now, value))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()

    @property
    def per_second(self) -> float:
        """Return how much it has grown in a second, 0 while nobody knows."""
        if len(self._samples) < 2:
            return 0.0
        (since, first), (now, last) = self._samples[0], self._samples[-1]
        return max(last - first, 0.0) / (now - since) if now > since else 0.0


class DataAhead:
    """The blocks of one disk that hold data: those that bulk has passed, and those that it has not."""

    def __init__(self, bmds: device.BlkMigDevState, *, holes_are_data: bool) -> None:
        self._bmds = bmds
        self._nblocks = bmds.geometry.nblocks
        self._blocks_per_cell = max(1, -(-self._nblocks // CELLS))
        self._cells = [0] * -(-self._nblocks // self._blocks_per_cell)
        self._counted = 0
        self._asked_offset = 0
        self._asked_blocks = 0
        # The cells that bulk has passed as a whole, and the blocks of data in them.
        self._passed_cells = 0
        self._passed = 0
        if holes_are_data:
            self._take_rest()

    @property
    def is_known(self) -> bool:
        """Return whether the disk was asked to its end."""
        return self._asked_blocks >= self._nblocks

    def ask(self) -> None:
        """Ask the disk for its next extent of data. Blocks as that does."""
        from ..block import bulk  # here: the receiving end, whose rates are counted here, too, has no bulk phase

        backend, offset = self._bmds.backend, self._asked_offset
        try:
            if self._bmds.shared_base:
                extent = backend.next_allocated(offset, bulk.SEARCH_BYTES) if offset < backend.size else None
                if extent is None and offset + bulk.SEARCH_BYTES < backend.size:
                    self._asked_offset += bulk.SEARCH_BYTES
                    self._asked_blocks = max(self._asked_blocks, self._asked_offset // _core.BLOCK_SIZE)
                    return
            else:
                extent = backend.next_data(offset)
        except errors.DeviceError:
            self._take_rest()  # the migration will meet this error itself, where it matters
            return
        if extent is None or extent[1] <= offset:
            self._asked_blocks = self._nblocks
            return
        self._count(extent[0] // _core.BLOCK_SIZE, -(-extent[1] // _core.BLOCK_SIZE))
        self._asked_offset = extent[1]

    def passed_and_left(self) -> tuple[int, int]:
        """Return how many blocks of data bulk has passed, and how many there are still likely to be."""
        cursor = self._nblocks if self._bmds.bulk_completed else self._cursor()
        cell = cursor // self._blocks_per_cell
        while self._passed_cells < min(cell, len(self._cells)):
            self._passed += self._cells[self._passed_cells]
            self._passed_cells += 1
        within = 0
        if cell < len(self._cells):
            within = self._cells[cell] * (cursor % self._blocks_per_cell) // self._blocks_per_cell
        share = self._counted / self._asked_blocks if self._asked_blocks else 1.0
        known_left = max(self._counted - self._passed - within, 0)
        unknown_passed = max(cursor - self._asked_blocks, 0)
        unknown_left = self._nblocks - max(self._asked_blocks, cursor)
        return self._passed + within + round(unknown_passed * share), known_left + round(unknown_left * share)

    def _cursor(self) -> int:
        return min(self._bmds.cur_sector // _core.SECTORS_PER_BLOCK, self._nblocks)

    def _count(self, first: int, stop: int) -> None:
        """Take the blocks [first, stop) for data; those that were asked for before are counted already."""
        first, stop = max(first, self._asked_blocks), min(stop, self._nblocks)
        size = self._blocks_per_cell
        self._counted += max(stop - first, 0)
        while first < stop:
            end = min(stop, (first // size + 1) * size)
            self._cells[first // size] += end - first
            first = end
        self._asked_blocks = max(self._asked_blocks, stop)

    def _take_rest(self) -> None:
        self._count(self._asked_blocks, self._nblocks)


class Outlook:
    """What is left of a migration, of which `handlers` know how far they are."""

    def __init__(self, handlers: block.BlockSaveHandlers, clock: Callable[[], float]) -> None:
        self._block = handlers
        self._clock = clock
        self._ahead: list[DataAhead] | None = None
        self._bulk_since: float | None = None
        self._disk_rate = Rate()
        # What the last look has found: blocks of data that bulk has passed and has before it, bytes that are dirty.
        self.passed = 0
        self.ahead = 0
        self.dirty_bytes = 0
        self.disks_dirty_bytes: list[int] = []

    def begin_bulk(self) -> None:
        """Count the bulk phase's seconds from now on."""
        if self._bulk_since is None:
            self._bulk_since = self._clock()
            self._disk_rate.add(self._bulk_since, 0.0)

    def look(self) -> None:
        """Look how far the bulk phase is, and ask the disks a little further. Takes `ASK_SECONDS`, and one question."""
        blk_mig, now = self._block.blk_mig, self._clock()
        if self._ahead is None:
            holes_are_data = not blk_mig.zero_blocks
            self._ahead = [DataAhead(bmds, holes_are_data=holes_are_data) for bmds in blk_mig.bmds_list]
        if not blk_mig.bulk_completed:
            self._ask(now + ASK_SECONDS)
        found = [ahead.passed_and_left() for ahead in self._ahead]
        self.passed = max(self.passed, sum(passed for passed, _ in found))
        self.ahead = sum(left for _, left in found)
        self.disks_dirty_bytes = list(map(dirty_bytes, blk_mig.bmds_list))
        self.dirty_bytes = sum(self.disks_dirty_bytes) + blk_mig.in_flight_bytes
        self._disk_rate.add(now, self.passed * _core.BLOCK_SIZE)

    def _ask(self, deadline: float) -> None:
        for ahead in self._ahead or ():
            while not ahead.is_known:
                ahead.ask()
                if self._clock() >= deadline:
                    return

    @property
    def left(self) -> int:
        """Return the bytes that are left, holes not counted."""
        return self.ahead * _core.BLOCK_SIZE + self.dirty_bytes

    @property
    def bulk_percent(self) -> float:
        """Return how much of the data bulk has passed."""
        total = self.passed + self.ahead
        return 100.0 * self.passed / total if total else 100.0

    @property
    def disk_rate(self) -> float:
        """Return the bytes per second at which bulk passes data, zeros included, holes not."""
        return self._disk_rate.per_second

    def dirty_rate_in_bulk(self) -> float:
        """Return the different bytes per second that were dirtied since the bulk phase began."""
        seconds = self._clock() - (self._bulk_since or 0.0)
        return self.dirty_bytes / seconds if self._bulk_since is not None and seconds > 0 else 0.0

    def time_left(self, *, bandwidth: float, dirty_rate: float) -> float | None:
        """Return the seconds until all is sent, or hardly anything is dirty; None if that is not known, or never comes.
        """
        ahead, dirty = self.ahead * _core.BLOCK_SIZE, float(self.dirty_bytes)
        seconds = 0.0
        if ahead:
            if not self.disk_rate:
                return None
            seconds = ahead / self.disk_rate
            dirty += dirty_rate * seconds
        if not dirty:
            return seconds
        if bandwidth <= dirty_rate:
            return None
        return seconds + dirty / (bandwidth - dirty_rate)


def dirty_bytes(bmds: device.BlkMigDevState) -> int:
    """Return what is dirty of a disk and was sent; marks ahead of the bulk phase cost nothing more."""
    return bmds.dirty_bytes(stop_block=None if bmds.bulk_completed else bmds.cur_sector // _core.SECTORS_PER_BLOCK)


def time_to_come(elapsed: float, percent: int) -> float | None:
    """Return the seconds until 100 % have come, at the pace so far; None while nobody can tell."""
    return elapsed * (100 - percent) / percent if 0 < percent < 100 else None
