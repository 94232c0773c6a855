# SPDX-License-Identifier: GPL-2.0-or-later
"""What was not sent of one disk, against a stream of whole blocks; both ends count alike, by the records.

A block of zeros saves a block. A pack saves what it leaves out of each block of which it has anything; but right behind
the zeros of the one block that it lies in it is that block's data, and takes from what they saved.
"""

from __future__ import annotations

from .. import _core
from ..disk import geometry
from ..disk.extents import Extents


class Savings:
    """The bytes that were saved by zeros, by packs that are finer than blocks, and by compressing."""

    def __init__(self) -> None:
        self.by_zeros = self.by_granularity = 0
        self.by_compression = 0
        """Of payloads that went as frames: who sends one counts it here."""

        self._zeros: tuple[int, int] | None = None

    def zeros_went(self, block: int, count: int, *, blocks: int) -> None:
        """Count `count` blocks of zeros from `block` on; with them it is so many `blocks` of the disk."""
        self.by_zeros += count * _core.BLOCK_SIZE
        self._zeros = block + count - 1, blocks

    def pack_went(self, extents: Extents, nbytes: int, shape: geometry.BlockGeometry, *, blocks: int) -> None:
        """Count a pack of `nbytes`, before which so many `blocks` went of a disk of that geometry."""
        zeros, self._zeros = self._zeros, None
        if zeros is not None and zeros[1] == blocks and _lies_in(extents, *shape.block_range(zeros[0])):
            self.by_zeros -= nbytes
        else:
            self.by_granularity += _touched(extents, shape) * _core.BLOCK_SIZE - nbytes


def _lies_in(extents: Extents, offset: int, nbytes: int) -> bool:
    return offset <= extents[0][0] and sum(extents[-1]) <= offset + nbytes


def _touched(extents: Extents, shape: geometry.BlockGeometry) -> int:
    """Return of how many blocks a pack has anything; one with the last block that overlaps its neighbour has no other.
    """
    if shape.last_offset % _core.BLOCK_SIZE and _lies_in(extents, shape.last_offset, _core.BLOCK_SIZE):
        return 1
    count, last = 0, -1
    for offset, nbytes in extents:
        stop = (offset + nbytes - 1) // _core.BLOCK_SIZE
        count += stop - max(offset // _core.BLOCK_SIZE - 1, last)
        last = stop
    return count
