# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks of a disk have come, also where the disk's size is certain only at the end of the stream, or never."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import struct
import sys
import zlib
from collections.abc import Iterable

from .. import _core, diskmap, errors
from ..disk import geometry
from ..disk.extents import Extents

MAX_INFERRED_BYTES = 1 << 46
"""The disks of a stream are not believed to be larger than 64 TiB together unless their sizes were said: a damaged
sector must not cost memory."""

FIRST_BITS = 1 << 15
"""Blocks for which a bitmap has room at first: 4 KiB of memory, 32 GiB of disk."""

MAX_RANGES = 1024
"""So many ranges of missing blocks are listed; of more, the number of blocks is told."""


@dataclasses.dataclass
class PackTally:
    """What both ends count of the packs of one disk, so that the receiver notices one that is not what was sent."""

    packs: int = 0
    nbytes: int = 0
    chain: int = 0  # a CRC-32 that goes on from pack to pack; see `add`
    end: int = dataclasses.field(default=0, compare=False)
    """Where the farthest extent ends. No count: a lost link does not take it back, see `BlockCoverage.rewind`."""

    def add(self, extents: Extents, *, number: int, blocks: int, resent: int, resent_sum: int) -> None:
        """Count a pack before which so many blocks of the disk went, or came; of the others see `BlockCoverage`.

        `number` is how many packs of all disks there were before. So its place among the packs, and its place among the
        blocks, are in the chain with its extents.
        """
        numbers = number, blocks, resent, resent_sum % (1 << 64), *itertools.chain.from_iterable(extents)
        self.chain = zlib.crc32(struct.pack(f">QQQQ{'QI' * len(extents)}", *numbers), self.chain)
        self.packs += 1
        self.nbytes += sum(nbytes for _, nbytes in extents)
        self.end = max(self.end, sum(extents[-1]))


CoverageCounts = tuple[int, int, int, PackTally]
"""Blocks, the two numbers of `resent`, and the packs, as they were at a barrier."""


class CoverageRoom:
    """How many blocks more the disks of one stream may be believed to have."""

    def __init__(self) -> None:
        self.nblocks = MAX_INFERRED_BYTES // _core.BLOCK_SIZE


class BlockCoverage:
    """One bit per block that has come, for a disk of at most `limit` bytes called `name`. For one thread.

    `why_limited` says in errors whose limit that is.
    """

    def __init__(self, name: str, limit: int, *, room: CoverageRoom | None = None, why_limited: str = "") -> None:
        self.name = name
        self.limit = limit
        self._why_limited = why_limited or f"its target has {limit} bytes"
        self.room = room
        """What the disks of a stream share while nobody knows their sizes; None for a disk of known size."""

        self.bits = _core.Bitmap(min(-(-limit // _core.BLOCK_SIZE), FIRST_BITS))
        """It grows with the blocks that come: `check` replaces it."""

        self.end_sector = 0
        """The sector where the farthest block that came ends."""

        self.resent_blocks = 0
        self.resent_sum = 0
        """How many blocks came that had come before, and the sum of what `resent_term` makes of them."""

        self.counts_all = False
        """Every block counts as one that came before: the link was lost once, see `rewind`."""

        self.blocks = 0
        """Blocks that came, whether before or not."""

        self.map: diskmap.ArrivedMap | None = None  # for who wants a picture of it
        self.packs = PackTally()
        """The packs that came. They cover nothing: no block has come because a part of it has."""

        self._reach = min(limit, len(self.bits) * _core.BLOCK_SIZE)  # blocks that start before it have a bit

        self._tail_sector: int | None = None
        """Where the last block starts, if it is not at a whole MiB."""

    def check(self, sector: int, count: int, position: int) -> int:
        """Return the number of the first of `count` blocks from `sector` on, read at `position` of the stream.

        Raises :class:`~blkmig.errors.OutOfRange` unless they are blocks of the disk.
        """
        if sector % _core.SECTORS_PER_BLOCK and not (count == 1 and self._is_tail(sector)):
            if (sector + _core.SECTORS_PER_BLOCK) << _core.SECTOR_BITS >= self.limit + _core.SECTOR_SIZE:
                raise self._too_far(sector, position)
            raise self._outside(sector, "which is not the start of a block", position)
        last = sector + (count - 1) * _core.SECTORS_PER_BLOCK
        if last << _core.SECTOR_BITS >= self._reach:
            self._grow(last, position)
        # The last block may start early, over its neighbour; that does not change its number.
        return -(-sector // _core.SECTORS_PER_BLOCK)

    def add(self, block: int, count: int, *, is_zero: bool = False) -> int:
        """Note that `count` blocks from `block` on have come, and return how many of them had come before."""
        if self.map is not None:
            self.map.came(block, count, is_zero=is_zero, come_before=self.bits.count)
        is_new = block * _core.SECTORS_PER_BLOCK >= self.end_sector  # nothing came from here on: the usual case
        before = 0 if is_new else self.bits.count(block, block + count)
        self.blocks += count
        if self.counts_all:
            self.resent_blocks += count
            self.resent_sum += resent_term(block, count) + count * is_zero
        elif before:
            self.resent_blocks += before
            self.resent_sum += before * is_zero
            if before == count:
                self.resent_sum += count * (2 * block + count + 1)  # resent_term, but for a call for each block
            else:
                self._add_resent(block, count)
        if before < count:
            self.bits.set_range(block, count)
        self._reached(block + count - 1)
        return before

    def _reached(self, last: int) -> None:
        is_tail = self._tail_sector is not None and last == -(-self._tail_sector // _core.SECTORS_PER_BLOCK)
        start = self._tail_sector if is_tail and self._tail_sector else last * _core.SECTORS_PER_BLOCK
        self.end_sector = max(self.end_sector, start + _core.SECTORS_PER_BLOCK)

    def add_parts(self, blocks: Iterable[int], shape: geometry.BlockGeometry, position: int) -> None:
        """Note that all of `blocks` has come, but not as blocks; what comes of them later comes again."""
        for block in blocks:
            self.check(shape.block_range(block)[0] >> _core.SECTOR_BITS, 1, position)
            if self.map is not None:
                self.map.was_there(block)
            if not self.bits.test(block):
                self.bits.set_range(block, 1)
                self._reached(block)

    def add_pack(self, extents: Extents, *, number: int) -> None:
        """Note that a pack has come, after `number` packs of all disks."""
        if self.map is not None:
            self.map.parts_came(extents)
        self.packs.add(
            extents, number=number, blocks=self.blocks, resent=self.resent_blocks, resent_sum=self.resent_sum
        )

    def counts(self) -> CoverageCounts:
        """Return what was counted so far."""
        return self.blocks, self.resent_blocks, self.resent_sum, copy.copy(self.packs)

    def rewind(self, counts: CoverageCounts) -> None:
        """Count on from `counts`, those of the last barrier that was acknowledged, because the link was lost.

        The source cannot know which of the later records have come, so from now on both count every block as one that
        came before. Which blocks have come at all is not forgotten: the source sends again all that may be lost.
        """
        end = self.packs.end
        self.blocks, self.resent_blocks, self.resent_sum, packs = counts
        self.packs = copy.copy(packs)
        self.packs.end = end
        self.counts_all = True

    def check_pack(self, extents: Extents, position: int) -> None:
        """Raise :class:`~blkmig.errors.OutOfRange` unless the pack, read at `position`, lies inside the disk."""
        offset, nbytes = extents[-1]
        if offset + nbytes > -(-self.limit // _core.SECTOR_SIZE) * _core.SECTOR_SIZE:
            raise errors.OutOfRange(
                f"disk {self.name!r}: {self._why_limited}, and a pack came that reaches to offset {offset + nbytes}: "
                "give a target as large as the source's disk",
                device=self.name,
                sector=offset >> _core.SECTOR_BITS,
                position=position,
            )

    def inferred_size(self) -> int:
        """Return the size of a disk that ends where its farthest block ends."""
        return self.end_sector << _core.SECTOR_BITS

    def fits(self, size: int) -> bool:
        """Return whether all blocks and packs that came are those of a disk of `size` bytes."""
        nblocks = -(-size // _core.BLOCK_SIZE)
        if self.packs.end > -(-size // _core.SECTOR_SIZE) * _core.SECTOR_SIZE:
            return False
        if nblocks < len(self.bits) and self.bits.find_next_set(nblocks) >= 0:
            return False
        return self._tail_sector is None or self._tail_sector + _core.SECTORS_PER_BLOCK == -(-size // _core.SECTOR_SIZE)

    def count_missing(self, size: int) -> int:
        """Return how many blocks of a disk of `size` bytes never came."""
        nblocks = -(-size // _core.BLOCK_SIZE)
        return nblocks - self.bits.count(0, min(nblocks, len(self.bits)))

    def missing(self, size: int) -> list[tuple[int, int]]:
        """Return the ranges (first block, count) of a disk of `size` bytes that never came; the first 1024 of them."""
        nblocks = -(-size // _core.BLOCK_SIZE)
        stop = min(nblocks, len(self.bits))
        ranges: list[tuple[int, int]] = []
        block = self.bits.find_next_clear(0, stop)
        while block >= 0 and len(ranges) < MAX_RANGES:
            end = self.bits.find_next_set(block, stop)
            end = stop if end < 0 else end
            ranges.append((block, end - block))
            block = self.bits.find_next_clear(end, stop) if end < stop else -1
        if nblocks > stop and len(ranges) < MAX_RANGES:
            ranges.append((stop, nblocks - stop))
        return ranges

    def checksum(self) -> str:
        """Return a checksum of which blocks have come, as the sender computes it."""
        return checksum_of(self.bits)

    def _grow(self, sector: int, position: int) -> None:
        """Make room for the block at `sector`; double the bitmap, where that may be."""
        if sector << _core.SECTOR_BITS >= self.limit:
            raise self._too_far(sector, position)
        have, most = len(self.bits), -(-self.limit // _core.BLOCK_SIZE)
        need = -(-sector // _core.SECTORS_PER_BLOCK) + 1
        wanted = min(max(need, 2 * have), most)
        if self.room is not None:
            if wanted - have > self.room.nblocks:
                wanted = need
            if wanted - have > self.room.nblocks:
                why = f"so far out that the stream's disks would have more than {MAX_INFERRED_BYTES} bytes"
                raise self._outside(sector, why, position)
            self.room.nblocks -= wanted - have
        try:
            self.bits = grown(self.bits, wanted)
        except MemoryError as error:
            raise self._outside(sector, "so far out that there is no memory for it", position) from error
        self._reach = min(self.limit, wanted * _core.BLOCK_SIZE)

    def _add_resent(self, block: int, count: int) -> None:
        """Add up those of these blocks that came before, where some of them did and some did not."""
        stop = block + count
        while (area := self.bits.next_dirty_area(block, stop)) is not None:
            first, known = area
            self.resent_sum += resent_term(first, known)
            if (block := first + known) >= stop:
                return

    def _is_tail(self, sector: int) -> bool:
        """Return whether the last block starts at `sector`, not at a whole MiB; there is only one such sector."""
        if self._tail_sector is None and sector + _core.SECTORS_PER_BLOCK <= -(-self.limit // _core.SECTOR_SIZE):
            self._tail_sector = sector
        return sector == self._tail_sector

    def _too_far(self, sector: int, position: int) -> errors.OutOfRange:
        """Return the error for a block behind the limit."""
        return errors.OutOfRange(
            f"disk {self.name!r}: {self._why_limited}, and a block came that starts at offset "
            f"{sector << _core.SECTOR_BITS}: give a target, or a size, as large as the source's disk",
            device=self.name,
            sector=sector,
            position=position,
        )

    def _outside(self, sector: int, why: str, position: int) -> errors.OutOfRange:
        """Return the error for a block that cannot be."""
        return errors.OutOfRange(
            f"disk {self.name!r}: a block at sector {sector}, {why}", device=self.name, sector=sector, position=position
        )


def resent_term(block: int, count: int = 1) -> int:
    """Return what `count` blocks from `block` on add to the sum when they come again; zeros add 1 more each.

    So the sum tells which blocks came again, and whether zeros or data came last for each.
    """
    return count * (2 * block + count + 1)


def grown(bits: _core.Bitmap, nbits: int) -> _core.Bitmap:
    """Return a bitmap of `nbits` bits that begins with those of `bits`."""
    longer = _core.Bitmap(nbits)
    with memoryview(bits) as old, memoryview(longer) as new:
        new[: len(old)] = old
    return longer


def checksum_of(bits: _core.Bitmap) -> str:
    """Return a checksum of the set bits of a bitmap, whatever its length."""
    words = memoryview(bits).tobytes()
    if sys.byteorder == "big":
        words = b"".join(words[start : start + 8][::-1] for start in range(0, len(words), 8))
    return f"{zlib.crc32(words.rstrip(bytes(1))):08x}"
