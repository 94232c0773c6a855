# SPDX-License-Identifier: GPL-2.0-or-later
"""What was taken and sent, and is not acknowledged: it is taken back when the link is lost.

::

    dirty, or above the bulk cursor ─ take ─► in flight ─ put ─► sent ─ BARRIER ─► awaited ─ ACK ─► nowhere
          ▲                                       │                │                 │
          └─────────────────────────────────── take_back, when the link is lost ─────┘

**Each range that was taken is in exactly one place.** It is in flight (read, or waiting to be sent) until the channel
has all of it; then it is in the list of the barrier that follows it on the wire; once that is acknowledged, nowhere.
What a call that fails was about to put is still in flight, and holes and runs of the bulk phase are above its cursor
until they have been put. So whatever was lost with the link is marked again, and what was not lost is only sent twice.

A range is a run of whole blocks, zeros or data, or an extent of a pack. They are `MAX_RANGES` at most.
Migration thread only.
"""

from __future__ import annotations

from .. import _core, disk
from . import device

MAX_RANGES = 65536
"""Ranges in both lists: some 10 MiB."""

MOST_RANGES = MAX_RANGES - 8192
"""From so many on nothing is read any more; what is read already has no more than the rest: 512 packs of 16 extents."""

Entry = tuple[device.BlkMigDevState, int, int, "disk.Extents | None", bool]
"""A disk, and a block and how many follow, or else the extents of a pack; and whether it was compared: then it is
compared again, for the target may hold it by now."""


class SentLog:
    """The ranges that were sent since the last barrier, and those before it that it is to acknowledge."""

    def __init__(self) -> None:
        self.sent: list[Entry] = []
        """What was sent since the last barrier. Who sends a block or a pack puts it here, and counts its `ranges`: a
        call for each of them would cost more than all the rest of it."""

        self.ranges = 0
        """How many there are in both lists."""

        self._awaited: list[Entry] = []
        self._awaited_ranges = 0
        # The run of blocks that was sent last, which the next one is likely to continue.
        self._bmds: device.BlkMigDevState | None = None
        self._start = self._stop = 0

    def add_run(self, bmds: device.BlkMigDevState, block: int, count: int) -> None:
        """Take note that `count` blocks from `block` on were sent."""
        if bmds is self._bmds and block == self._stop:
            self._stop += count
            return
        self._end_run()
        self._bmds, self._start, self._stop = bmds, block, block + count
        self.ranges += 1

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be sent before a barrier is acknowledged."""
        return self.ranges >= MOST_RANGES

    def barrier(self) -> None:
        """Take note that a barrier was sent, and the one before it was acknowledged."""
        self._end_run()
        assert not self._awaited
        self._awaited, self.sent = self.sent, []
        self._awaited_ranges = self.ranges

    def acknowledged(self) -> None:
        """Forget what the last barrier is about: it is on stable storage."""
        self.ranges -= self._awaited_ranges
        self._awaited, self._awaited_ranges = [], 0

    def take_back(self) -> int:
        """Mark everything dirty that is in the lists, which are empty then; return how many bytes that is."""
        self._end_run()
        nbytes = sum(map(mark, self._awaited + self.sent))
        self.sent, self._awaited = [], []
        self.ranges = self._awaited_ranges = 0
        return nbytes

    def _end_run(self) -> None:
        if self._bmds is not None:
            self.sent.append((self._bmds, self._start, self._stop - self._start, None, False))
            self._bmds = None


def mark(entry: Entry) -> int:
    """Mark a range dirty, whole blocks as whole ones, so that they are sent whole; return its bytes."""
    bmds, block, count, extents, is_compared = entry
    bitmap = bmds.dirty_bitmap
    if is_compared:
        bmds.again.set(block)
        return _core.BLOCK_SIZE
    if extents is not None:
        bitmap.mark_areas(extents)
        return sum(nbytes for _, nbytes in extents)
    bitmap.bits.set_range(block * bitmap.bits_per_block, count * bitmap.bits_per_block)
    return count * _core.BLOCK_SIZE
