# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the blocks of a disk lie: the one place for the rule of the last block.

Block *i* covers ``[i, i + 1)`` MiB, but the last block ends where the disk ends (rounded up to the sector). On a disk
of at least 1 MiB it is a whole MiB, too, and overlaps its neighbour; only a disk under 1 MiB has a shorter block::

    2.5 MiB      0         1         2    2.5
                 ├─ 0 ─────┼─ 1 ─────┤    │          block_range(2) = (1.5 MiB, 1 MiB)
                                ├─ 2 ─────┤          [1.5, 2) MiB is covered by blocks 1 and 2

So no block reaches past the last sector, which is what every receiver takes. Between the exact size and the end
of the last sector (a disk of 1000 bytes has 24 such bytes) everything reads as zeros.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from .. import _core, errors, units


@contextlib.contextmanager
def keeping_account(size: int) -> Iterator[None]:
    """Turn a MemoryError of the body, which allocates for each block of a disk of `size` bytes, into a ParameterError.

    Files of 2^62 bytes can be made anywhere: they are all hole, and only an account of their blocks takes memory.
    """
    try:
        yield
    except MemoryError as error:
        why = "there is not enough memory to keep account of its blocks"
        raise errors.ParameterError(f"a disk of {size} bytes is too large: {why}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class BlockGeometry:
    """The blocks of a disk of `size` bytes. Everything is arithmetic: it takes no memory and no time."""

    size: int
    total_sectors: int = dataclasses.field(init=False, compare=False)
    nblocks: int = dataclasses.field(init=False, compare=False)
    last_offset: int = dataclasses.field(init=False, compare=False)
    """Where the last block starts; 0 if there is none."""

    def __post_init__(self) -> None:
        """Derive the rest from the size."""
        object.__setattr__(self, "size", units.index(self.size))
        if not 0 <= self.size < 1 << 63:
            raise errors.ParameterError(f"a disk cannot have {self.size} bytes: it has from 0 to 2^63 - 1")
        total_sectors = -(-self.size // _core.SECTOR_SIZE)
        object.__setattr__(self, "total_sectors", total_sectors)
        object.__setattr__(self, "nblocks", -(-total_sectors // _core.SECTORS_PER_BLOCK))
        object.__setattr__(
            self, "last_offset", max(0, total_sectors - _core.SECTORS_PER_BLOCK) * _core.SECTOR_SIZE
        )

    def block_range(self, block: int) -> tuple[int, int]:
        """Return (offset, nbytes) of `block`; both are whole sectors, `nbytes` is 1 MiB but on disks under 1 MiB.

        The last block of a disk that does not end on a sector reaches past its exact size: see :meth:`clip`.
        """
        if type(block) is not int:
            block = units.index(block)
        if not 0 <= block < self.nblocks:
            raise IndexError(f"block {block} of a disk of {self.nblocks} blocks")
        offset = block * _core.BLOCK_SIZE if block < self.nblocks - 1 else self.last_offset
        return offset, min(_core.BLOCK_SIZE, self.total_sectors * _core.SECTOR_SIZE)

    def clip(self, offset: int, nbytes: int) -> int:
        """Return how many of the `nbytes` at `offset` lie inside the exact size."""
        return max(0, min(units.index(nbytes), self.size - units.index(offset)))

    def blocks_covering(self, offset: int, nbytes: int) -> range:
        """Return the blocks that share a byte with [offset, offset + nbytes); what lies outside the disk is ignored.

        They are always neighbours: a range that touches the last block, which starts after ``(nblocks - 2)`` MiB,
        either touches the one before it or starts behind that one.
        """
        offset, nbytes = units.index(offset), units.index(nbytes)
        start, end = max(offset, 0), min(offset + nbytes, self.total_sectors * _core.SECTOR_SIZE)
        if start >= end:
            return range(0)
        first = min(start // _core.BLOCK_SIZE, self.nblocks - 1)
        last = self.nblocks - 1 if end > self.last_offset else (end - 1) // _core.BLOCK_SIZE
        return range(first, last + 1)

    def block_of(self, sector: int) -> int | None:
        """Return the block that starts at `sector`, None if none does.

        The last block has two starts: its own, and ``(nblocks - 1)`` MiB, where QEMU sends a short last block. With
        either, blocks 0 to ``nblocks - 1`` together cover the disk.
        """
        sector = units.index(sector)
        if sector * _core.SECTOR_SIZE == self.last_offset and self.nblocks:
            return self.nblocks - 1
        block, rest = divmod(sector, _core.SECTORS_PER_BLOCK)
        return block if not rest and 0 <= block < self.nblocks else None
