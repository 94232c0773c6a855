# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks were written since they were last read.

The rule that everything rests on is **clear, then read; write, then mark**. The reader takes a block's bits
atomically *before* it reads the block; a writer marks *after* its write is done. So a write that races a read leaves
its mark behind, and the block is read again::

    writer    write ──────────► mark
    reader          take ► read             the read may have missed the write: its mark stays

The bits stand in block order and no two blocks share one: block *i* owns bits ``[i * n, (i + 1) * n)``, where *n* is
``1 MiB / granularity``. A byte where the last block overlaps its neighbour has a bit in each of them, and
:meth:`DirtyBitmap.mark` sets both.
"""

from __future__ import annotations

from collections.abc import Iterable

from .. import _core, errors, units
from . import geometry

MIN_GRANULARITY = 1 << 12


class DirtyBitmap:
    """The marks of one tracker of a disk of `size` bytes, all clean at first.

    `granularity` is how many bytes one bit stands for: a power of two from 4 KiB to 1 MiB. Everything here may be
    called from any thread at any time, without a lock: each word of bits changes atomically. Raises
    :class:`~blkmig.errors.ParameterError` for a size that no disk has, or whose bits do not fit into memory.
    """

    __slots__ = ("_bits_per_block", "_shift", "bits", "geometry", "granularity")

    def __init__(self, size: int, granularity: int = _core.BLOCK_SIZE) -> None:
        granularity = units.index(granularity)
        if not MIN_GRANULARITY <= granularity <= _core.BLOCK_SIZE or granularity & (granularity - 1):
            raise errors.ParameterError(f"granularity must be a power of two from 4K to 1M, not {granularity!r}")
        self.geometry = geometry.BlockGeometry(size)
        self.granularity = granularity
        self._shift = granularity.bit_length() - 1
        self._bits_per_block = _core.BLOCK_SIZE >> self._shift
        with geometry.keeping_account(self.geometry.size):
            self.bits = _core.Bitmap(self.geometry.nblocks * self._bits_per_block)

    @property
    def nblocks(self) -> int:
        """Return the number of blocks of the disk."""
        return self.geometry.nblocks

    def block_range(self, block: int) -> tuple[int, int]:
        """Return (offset, nbytes) of `block`, as :meth:`BlockGeometry.block_range` does."""
        return self.geometry.block_range(block)

    # -- writers -----------------------------------------------------------------------------------------------------

    def mark(self, offset: int, nbytes: int) -> None:
        """Mark every block that covers a byte of [offset, offset + nbytes), after the write is done.

        What lies outside the disk is ignored. Constant time but for the bits to be set.
        """
        if type(offset) is not int or type(nbytes) is not int:
            offset, nbytes = units.index(offset), units.index(nbytes)
        start, end = max(offset, 0), min(offset + nbytes, self.geometry.total_sectors * _core.SECTOR_SIZE)
        if start >= end:
            return
        # Up to the last block, a bit's number is that of its chunk of the disk.
        first_of_last = (self.geometry.nblocks - 1) * self._bits_per_block
        first, stop = start >> self._shift, min(((end - 1) >> self._shift) + 1, first_of_last)
        if first < stop:
            self.bits.set_range(first, stop - first)
        # The last block counts its bits from where it starts.
        end -= self.geometry.last_offset
        if end > 0:
            first = max(start - self.geometry.last_offset, 0) >> self._shift
            self.bits.set_range(first_of_last + first, ((end - 1) >> self._shift) + 1 - first)

    def mark_areas(self, areas: Iterable[tuple[int, int]]) -> None:
        """Do what :meth:`mark` does for each (offset, nbytes), in less time than so many calls; they are plain ints."""
        shift, set_range, last_offset = self._shift, self.bits.set_range, self.geometry.last_offset
        for offset, nbytes in areas:
            if offset >= 0 and 0 < nbytes <= last_offset - offset:  # as nearly all: nothing of the last block
                first = offset >> shift
                set_range(first, (offset + nbytes - 1 >> shift) + 1 - first)
            else:
                self.mark(offset, nbytes)

    def mark_block(self, block: int) -> None:
        """Mark one block alone, as when a block that was taken could not be read or sent."""
        self.bits.set_range(units.index(block) * self._bits_per_block, self._bits_per_block)

    def mark_all(self) -> None:
        """Mark every block."""
        self.bits.set_range(0, len(self.bits))

    def merge(self, other: DirtyBitmap) -> None:
        """Mark what is marked in `other`, a bitmap of the same size and granularity; `other` does not change."""
        if (other.geometry, other.granularity) != (self.geometry, self.granularity):
            raise ValueError("only bitmaps of the same size and granularity can be merged")
        self.bits.merge(other.bits)

    # -- the reader --------------------------------------------------------------------------------------------------

    def take_block(self, block: int) -> bool:
        """Clear `block` and return whether it was marked; call it *before* the block is read."""
        if type(block) is not int:
            block = units.index(block)
        return self.bits.take_range(block * self._bits_per_block, self._bits_per_block)

    def take_block_if(self, block: int, enough: int) -> bool:
        """Clear `block` if at least `enough` of its bits are marked, and return whether that was so."""
        if type(block) is not int:
            block = units.index(block)
        return self.bits.take_range_if(block * self._bits_per_block, self._bits_per_block, enough)

    @property
    def bits_per_block(self) -> int:
        """Return how many bits a block has; those of block *i* begin at *i* times as many."""
        return self._bits_per_block

    def take_blocks(self, block: int, count: int) -> bool:
        """Clear `count` blocks from `block` on and return whether any was marked."""
        block, count = units.index(block), units.index(count)
        return self.bits.take_range(block * self._bits_per_block, count * self._bits_per_block)

    def take_areas(self, max_areas: int = 256) -> list[tuple[int, int]]:
        """Clear the first marked areas, `max_areas` at most, and return them as (offset, nbytes); [] if all is clean.

        How a backup drains the marks; clear, then read, here too::

            while areas := bitmap.take_areas():
                for offset, nbytes in areas:
                    copy(offset, nbytes)        # what is written from here on is in a later list

        Areas are as fine as the granularity and inside the disk. Those of the last block may overlap its neighbour's.
        """
        max_areas = units.index(max_areas)
        first_of_last = max(self.geometry.nblocks - 1, 0) * self._bits_per_block
        areas = [(bit << self._shift, n << self._shift) for bit, n in self.bits.take_areas(0, first_of_last, max_areas)]
        if len(areas) < max_areas:
            # The last block counts its bits from where it starts.
            last = self.bits.take_areas(first_of_last, None, max_areas - len(areas))
            start = self.geometry.last_offset
            areas += [(start + (bit - first_of_last << self._shift), n << self._shift) for bit, n in last]
        return self._inside(areas)

    def take_extents(self, block: int, max_extents: int = 256) -> list[tuple[int, int]]:
        """Clear the first marked extents of `block`, `max_extents` at most, and return them as (offset, nbytes).

        They are as fine as the granularity, ascending, apart from each other, and inside the block and the disk. What
        is more than `max_extents` stays marked. Clear, then read.
        """
        if type(block) is not int:
            block = units.index(block)
        offset, _ = self.geometry.block_range(block)
        start = block * self._bits_per_block
        areas = self.bits.take_areas(start, start + self._bits_per_block, max_extents)
        return self._inside([(offset + (bit - start << self._shift), n << self._shift) for bit, n in areas])

    def _inside(self, areas: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return what of `areas` is inside the disk."""
        return [(offset, inside) for offset, n in areas if (inside := self.geometry.clip(offset, n))]

    def is_dirty(self, block: int) -> bool:
        """Return whether `block` is marked."""
        start = units.index(block) * self._bits_per_block
        return self.bits.find_next_set(start, start + self._bits_per_block) >= 0

    def next_dirty(self, start_block: int) -> int:
        """Return the first marked block at or after `start_block`, -1 if there is none; it does not wrap."""
        if type(start_block) is not int:
            start_block = units.index(start_block)
        if start_block >= self.geometry.nblocks:
            return -1
        bit = self.bits.find_next_set(start_block * self._bits_per_block)
        return bit // self._bits_per_block if bit >= 0 else -1

    # -- how much is marked ------------------------------------------------------------------------------------------

    def count_blocks(self) -> int:
        """Return how many blocks are marked."""
        return self.bits.count_rounded(self._bits_per_block, 1) // self._bits_per_block

    def count_in_block(self, block: int) -> int:
        """Return how many bits of `block` are marked."""
        start = units.index(block) * self._bits_per_block
        return self.bits.count(start, start + self._bits_per_block)

    def count_bytes(self) -> int:
        """Return how many bytes of the disk the marked bits stand for; where the last block overlaps, each counts."""
        shape = self.geometry
        if not shape.nblocks:
            return 0
        # The bit with the last byte of the disk may reach past it; bits behind that one stand for nothing.
        within = (shape.size - shape.last_offset - 1) >> self._shift
        last = (shape.nblocks - 1) * self._bits_per_block + within
        nbytes = self.bits.count(0, last) << self._shift
        if self.bits.test(last):
            nbytes += shape.clip(shape.last_offset + (within << self._shift), self.granularity)
        return nbytes

    def count_bytes_rounded(self, enough: int, *, stop_block: int | None = None) -> int:
        """Return the marked bytes, where a block counts as a whole one from so many marked bits on: 1 MiB.

        Of the blocks below `stop_block`; by default of all. One call of a millisecond for 8 MiB of bits.
        """
        stop = None if stop_block is None else min(units.index(stop_block), self.nblocks) * self._bits_per_block
        return self.bits.count_rounded(self._bits_per_block, enough, 0, stop) << self._shift
