# SPDX-License-Identifier: GPL-2.0-or-later
"""What a look at a stream finds of one disk, and who is told of each record. No payload is looked at."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _core, block, channel, stats
from ..block import ExtraKind, TableDisk
from ..disk import Extents


class RecordListener:
    """Is told of each record of the section of the disks, for a listing; does nothing until overridden."""

    def block(self, name: str, sector: int, count: int, position: int, *, is_zero: bool) -> None:
        """Take note of a block, or of a run of zero blocks."""

    def pack(self, name: str, extents: Extents, position: int) -> None:
        """Take note of a pack, with each extent as (offset, nbytes)."""

    def progress(self, percent: int) -> None:
        """Take note of the progress that the source reports; it has changed."""

    def table(self, disks: Sequence[TableDisk], position: int) -> None:
        """Take note of the table with which a section ``blkmig`` begins."""

    def flush(self, number: int) -> None:
        """Take note that the source asks for everything to be on stable storage."""

    def barrier(self, number: int, position: int) -> None:
        """Take note of a barrier, which is acknowledged when what came before it is on stable storage."""

    def extra(self, kind: ExtraKind, nbytes: int, position: int) -> None:
        """Take note of a record of this kind, with so many bytes of body."""


class InspectedDisk:
    """What came of one disk."""

    def __init__(
        self,
        name: str,
        records: RecordListener,
        room: block.CoverageRoom,
        frames: block.ComingFrame,
        zeros: block.ComingZeros,
    ) -> None:
        self.statistics = stats.DiskStatistics(name)
        self.coverage = block.BlockCoverage(name, block.MAX_INFERRED_BYTES, room=room)
        self.zero = _core.Bitmap(len(self.coverage.bits))
        """Blocks that came as zero last."""

        self.resent = _core.Bitmap(len(self.coverage.bits))
        self.rounds = 0
        """Times that the sender went over the disk: a block that comes again in a round begins the next one."""

        self._round = _core.Bitmap(len(self.coverage.bits))
        self._last_zero: tuple[int, int] | None = None
        """Number and offset of the block that came last, if it came as zero: a pack of its data may follow."""

        self._records = records
        self._frames = frames
        self._zeros = zeros

    def load_block(self, f: channel.InputQEMUFile, sector: int, position: int) -> None:
        """Skip one block's payload and count it."""
        number = self.coverage.check(sector, 1, position)
        self._skip(f, _core.BLOCK_SIZE)
        self._came(number, 1)
        self.zero.clear(number)
        self._last_zero = None
        self._records.block(self.statistics.name, sector, 1, position, is_zero=False)

    def load_pack(self, f: channel.InputQEMUFile, extents: Extents, position: int, number: int) -> None:
        """Skip a pack's payload and count it."""
        self.coverage.check_pack(extents, position)
        nbytes = sum(length for _, length in extents)
        if self._frames.nbytes:
            self._zeros.check_none(position)
        runs = self._zeros.runs(extents, position)
        self._skip(f, nbytes if runs is None else sum(stop - start for start, stop in runs))
        self.coverage.add_pack(extents, number=number)
        self._records.pack(self.statistics.name, extents, position)
        self.statistics.packs += 1
        self.statistics.pack_bytes += nbytes
        zero, self._last_zero = self._last_zero, None
        if zero is not None and zero[1] <= extents[0][0] and sum(extents[-1]) <= zero[1] + _core.BLOCK_SIZE:
            self.zero.clear(zero[0])  # a block with holes: it has come once
            extents = []
        for offset, length in extents:
            first, stop = offset // _core.BLOCK_SIZE, -(-(offset + length) // _core.BLOCK_SIZE)
            if first < len(self.resent):
                self.resent.set_range(first, min(stop, len(self.resent)) - first)

    def load_zero_run(self, sector: int, count: int, position: int) -> None:
        """Count zero blocks."""
        number = self.coverage.check(sector, count, position)
        self._came(number, count, is_zero=True)
        self.zero.set_range(number, count)
        self._last_zero = number + count - 1, sector + (count - 1) * _core.SECTORS_PER_BLOCK << _core.SECTOR_BITS
        self.statistics.zero_blocks += count
        self._records.block(self.statistics.name, sector, count, position, is_zero=True)

    def _skip(self, f: channel.InputQEMUFile, nbytes: int) -> None:
        """Skip a payload of `nbytes`; of a frame, which may be one of anything else, the head is looked at."""
        if not self._frames.nbytes:
            f.skip(nbytes)
            return
        self.statistics.saved_by_compression += nbytes - self._frames.skip(f, nbytes)

    def _came(self, number: int, count: int, *, is_zero: bool = False) -> None:
        """Count `count` blocks from block `number` on."""
        if len(self._round) < len(self.coverage.bits):
            self._grow(len(self.coverage.bits))
        if self._round.count(number, number + count):
            self._round.clear_range(0, -(-self.coverage.end_sector // _core.SECTORS_PER_BLOCK))
            self.rounds += 1
        self._round.set_range(number, count)
        self.rounds = max(self.rounds, 1)
        known = self.coverage.bits
        if count == 1 and known.test(number):
            self.resent.set(number)
        elif count > 1:
            self._note_resent(number, number + count)
        self.statistics.resent_blocks += self.coverage.add(number, count, is_zero=is_zero)
        self.statistics.blocks += count

    def _grow(self, nblocks: int) -> None:
        """Let the bitmaps grow with that of the coverage."""
        self.zero, self.resent, self._round = [
            block.grown(bits, nblocks) for bits in (self.zero, self.resent, self._round)
        ]

    def _note_resent(self, start: int, stop: int) -> None:
        """Mark the blocks of a run that had come before."""
        known = self.coverage.bits
        area = known.next_dirty_area(start, stop)
        while area is not None:
            self.resent.set_range(*area)
            area = known.next_dirty_area(sum(area), stop) if sum(area) < stop else None
