# SPDX-License-Identifier: GPL-2.0-or-later
"""Which extents of a disk go together as one pack, in a dirty round of the section ``blkmig``.

A block of which little is dirty need not go whole. What is dirty of it, and of the blocks behind it, is gathered into
one read and one record::

    block      | ▪   ▪▪    |           | ▪▪▪▪ ▪▪▪▪▪▪ | ▪         |        ▪ dirty
               '------ one pack ------'  goes whole    the next pack

Three rules of whole blocks hold here, too. **Clear, then read**: an extent's marks are taken before it is read, so a
write that races the read marks it again. **One read in flight for each block**: while the pack is being read, every
block from its first to its last one counts as being read. So what was read earlier of a block is sent earlier. **The
cursor moves on behind each block of the pack**, whatever is marked meanwhile.

The last block of most disks overlaps its neighbour, and each has marks of its own for what both hold. It begins a pack
of its own, since the extents of a pack ascend and none overlaps the next one.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import _core
from ..disk.extents import MAX_EXTENTS, Extents
from . import device


def take(bmds: device.BlkMigDevState, first: int, most: int) -> device.Pack | None:
    """Clear the marks of block `first`, and of blocks behind it, and return what they marked as a pack.

    The caller knows that `first` does not go whole. No further block is added once there are `most` extents. None if
    the marks of `first` stand for nothing.
    """
    bitmap, last = bmds.dirty_bitmap, first
    extents: Extents = []
    nbytes = 0
    for block, count in _blocks(bmds, first):
        if extents and (len(extents) >= most or len(extents) + count > MAX_EXTENTS):
            break
        if extents and nbytes + count * bitmap.granularity > _core.BLOCK_SIZE:
            break
        for offset, length in bitmap.take_extents(block, MAX_EXTENTS - len(extents)):
            length = -(-length // _core.SECTOR_SIZE) * _core.SECTOR_SIZE  # the end of the disk need not be one's
            if nbytes + length > _core.BLOCK_SIZE:
                bitmap.mark(offset, length)  # writers were quicker than the count
                continue
            nbytes += length
            if extents and sum(extents[-1]) == offset:
                offset, before = extents.pop()
                length += before
            extents.append((offset, length))
        last = block
    return device.Pack(extents, nbytes, last + 1 - first) if extents else None


def _blocks(bmds: device.BlkMigDevState, first: int) -> Iterator[tuple[int, int]]:
    """Yield `first` and the dirty blocks behind it, each with the number of its marks, up to one that goes whole."""
    bitmap = bmds.dirty_bitmap
    yield first, bitmap.count_in_block(first)
    stop = _stop(bmds, first)
    while first < (block := bitmap.next_dirty(first + 1)) < stop:
        count = bitmap.count_in_block(block)
        if count >= bmds.whole_from:
            return
        yield block, count
        first = block


def _stop(bmds: device.BlkMigDevState, first: int) -> int:
    """Return the block before which a pack that begins with `first` has to end."""
    shape = bmds.geometry
    busy = bmds.aio_bitmap.find_next_set(first + 1)
    overlaps = shape.last_offset % _core.BLOCK_SIZE != 0
    stop = shape.nblocks - 1 if overlaps else shape.nblocks
    return min(busy, stop) if busy >= 0 else stop
