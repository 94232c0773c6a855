# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the blocks of a disk that was sent, in few cells: a picture's worth, whatever the disk's size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import units

CELLS = 512
"""The most cells of a disk: what a picture shows of it, in a few KiB."""

AHEAD, EMPTY, DATA = 0, 1, 2
"""How a cell looks that was sent once at most: not reached, nothing to send, data."""

HEAT = (0.25, 1.0, 4.0)
"""How many times as much as a cell has was sent again, up to each degree of heat: those look as the numbers from
`DATA` + 1 on."""


class DiskMap:
    """Counts of one disk of `nblocks` blocks. The migration thread writes it; whoever draws it reads what is there."""

    def __init__(self, nblocks: int) -> None:
        self.nblocks = nblocks
        self.blocks_per_cell = max(1, -(-nblocks // CELLS))
        ncells = -(-nblocks // self.blocks_per_cell)
        self.empty = [0] * ncells
        """Blocks of each cell that had nothing to send: zeros, and what only a base holds."""

        self.again = [0] * ncells
        """Bytes of each cell that were sent again."""

    def passed_empty(self, block: int, count: int) -> None:
        """Count blocks that the bulk phase has passed without their data."""
        size, stop = self.blocks_per_cell, block + count
        while block < stop:
            end = min(stop, (block // size + 1) * size)
            self.empty[block // size] += end - block
            block = end

    def held_data(self, block: int) -> None:
        """Take a block back that was counted as empty: what it holds follows its zeros."""
        self.empty[block // self.blocks_per_cell] -= 1

    def sent_again(self, block: int, extents: Sequence[tuple[int, int]] = ()) -> None:
        """Count a block that is sent again, or only these `extents`, each an offset and a length."""
        again, size = self.again, self.blocks_per_cell
        if not extents:
            again[block // size] += units.MiB
        size *= units.MiB
        for offset, nbytes in extents:
            again[offset // size] += nbytes

    def cell_blocks(self, cell: int) -> int:
        """Return how many blocks a cell stands for; the last one may have fewer."""
        return min(self.blocks_per_cell, self.nblocks - cell * self.blocks_per_cell)

    def looks(self, passed_blocks: int) -> Iterator[int]:
        """Yield how each cell looks, if the bulk phase has passed so many blocks; of two looks the higher one tells
        more."""
        size = self.blocks_per_cell
        for cell, (empty, again) in enumerate(zip(self.empty, self.again, strict=True)):
            if again:
                yield DATA + 1 + sum(again > most * self.cell_blocks(cell) * units.MiB for most in HEAT)
            elif cell * size >= passed_blocks:
                yield AHEAD
            else:
                yield EMPTY if empty >= self.cell_blocks(cell) else DATA


def coarser(looks: Sequence[int], most: int) -> list[int]:
    """Return at most `most` looks for a picture with less room: of those that become one, the highest."""
    each = -(-len(looks) // most)
    return [max(looks[first : first + each]) for first in range(0, len(looks), each)] if each > 1 else [*looks]
