# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the blocks of a disk that was sent, in few cells: a picture's worth, whatever the disk's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
                yield heat(again, self.cell_blocks(cell))
            elif cell * size >= passed_blocks:
                yield AHEAD
            else:
                yield EMPTY if empty >= self.cell_blocks(cell) else DATA


class ArrivedMap(DiskMap):
    """The same at the receiving end, where it may be unknown how large a disk is: it begins small, and grows with what
    comes. The thread that loads writes it.

    `at` is called with each block, before it is counted.
    """

    def __init__(self, at: Callable[[int], None] = lambda block: None) -> None:
        super().__init__(CELLS)
        self.data = [0] * CELLS
        """Blocks of each cell that came as data when they came first."""

        self.passed_blocks = 0
        """Where the farthest block that came ends."""

        self._at = at
        self._last_zero = -1  # the block that came last, if that was as zeros: its data may follow as a pack

    def came(self, block: int, count: int, *, is_zero: bool, come_before: Callable[[int, int], int]) -> None:
        """Count blocks that have come; `come_before` says how many of those from one to before another did before."""
        self._reach(block + count)
        self._at(block)
        size, stop = self.blocks_per_cell, block + count
        self._last_zero = block if is_zero and count == 1 else -1
        while block < stop:
            cell = block // size
            end = min(stop, (cell + 1) * size)
            again = come_before(block, end)
            self.again[cell] += again * units.MiB
            self.data[cell] += 0 if is_zero else end - block - again
            block = end

    def parts_came(self, extents: Sequence[tuple[int, int]]) -> None:
        """Count a pack: of the block before it, if that came as zeros, it is the data; else it comes again."""
        block = extents[0][0] // units.MiB
        if block == self._last_zero:
            self.data[block // self.blocks_per_cell] += 1
        else:
            self._at(block)
            self.sent_again(block, extents)
        self._last_zero = -1

    def was_there(self, block: int) -> None:
        """Take note of a block that the target holds already."""
        self._reach(block + 1)

    def _reach(self, stop: int) -> None:
        self.passed_blocks = max(self.passed_blocks, stop)
        while stop > self.nblocks:
            self.again, self.data = merged(self.again), merged(self.data)
            self.nblocks *= 2
            self.blocks_per_cell *= 2

    def looks(self, size_blocks: int) -> Iterator[int]:
        """Yield how each cell looks of a disk of so many blocks; of one that is not known, of those that came."""
        size, nblocks = self.blocks_per_cell, size_blocks or self.passed_blocks
        all_data, all_again = self.data, self.again
        while nblocks > size * CELLS:  # nothing has come of what lies so far behind
            all_data, all_again, size = merged(all_data), merged(all_again), size * 2
        for cell, (data, again) in enumerate(zip(all_data, all_again, strict=True)):
            if cell * size >= nblocks:
                return
            if again:
                yield heat(again, min(size, nblocks - cell * size))
            elif cell * size >= self.passed_blocks:
                yield AHEAD
            else:
                yield DATA if data else EMPTY


def merged(cells: Sequence[int]) -> list[int]:
    """Return what cells count that stand for twice as many blocks each; the second half of them is free then."""
    return [cells[index] + cells[index + 1] for index in range(0, CELLS, 2)] + [0] * (CELLS // 2)


def heat(again: int, nblocks: int) -> int:
    """Return how a cell of so many blocks looks, of which `again` bytes were sent again."""
    return DATA + 1 + sum(again > most * nblocks * units.MiB for most in HEAT)


def coarser(looks: Sequence[int], most: int) -> list[int]:
    """Return at most `most` looks for a picture with less room: of those that become one, the highest."""
    each = -(-len(looks) // most)
    return [max(looks[first : first + each]) for first in range(0, len(looks), each)] if each > 1 else [*looks]
