# SPDX-License-Identifier: GPL-2.0-or-later
"""How fine a migration keeps track of writes: the bytes that one bit of a disk's dirty bitmap stands for.

In the section `block` a dirty bit costs a block of 1 MiB, however fine it is. In `blkmig` it costs as many bytes as it
stands for, unless so much of its block is dirty that the block goes as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from .. import _core, disk, params
from ..disk import dirty
from . import wire

MAX_BITMAP_BYTES = 8 << 20
"""Memory for the bitmaps of all disks together: to count the marks in so much takes about a millisecond."""

WHOLE_QUARTERS = 3
"""A block goes whole from so many quarters of it on that are dirty: a read and a record less make up for the rest."""


def of_disks(
    disks: Sequence[disk.BlockBackend], parameters: params.MigrationParameters, section: wire.Format
) -> list[int]:
    """Return the granularity of each of the `disks` that a migration sends in `section`."""
    if parameters.granularity != "auto":
        return [int(parameters.granularity)] * len(disks)
    if section == "block" or parameters.digests:  # then every dirty block goes whole
        return [_core.BLOCK_SIZE] * len(disks)
    return finest([backend.size for backend in disks], [backend.min_granularity for backend in disks])


def finest(sizes: Sequence[int], minima: Sequence[int]) -> list[int]:
    """Return the finest granularities with which the bitmaps of disks of `sizes` fit `MAX_BITMAP_BYTES`.

    None is below its disk's minimum, nor above 1 MiB, with which the bitmaps of very large disks may be larger. The
    disk whose bitmap is the largest is the first to be made coarser, so disks of like size get like granules.
    """
    found = [max(dirty.MIN_GRANULARITY, minimum) for minimum in minima]
    heap = [(-size // granularity, number) for number, (size, granularity) in enumerate(zip(sizes, found, strict=True))]
    heapq.heapify(heap)
    nbits = -sum(bits for bits, _ in heap)
    while nbits > MAX_BITMAP_BYTES * 8 and heap:
        bits, number = heapq.heappop(heap)
        if found[number] < _core.BLOCK_SIZE:
            found[number] *= 2
            coarser = -sizes[number] // found[number]
            nbits += bits - coarser
            heapq.heappush(heap, (coarser, number))
    return found


def whole_from(bits_per_block: int, section: wire.Format, parameters: params.MigrationParameters) -> int:
    """Return from how many marked bits on a dirty block goes whole."""
    if section == "block" or parameters.digests:
        return 1
    return -(-bits_per_block * WHOLE_QUARTERS // 4)
