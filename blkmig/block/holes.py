# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks of the bulk phase that have holes: in the section ``blkmig`` only their data travels.

Such a block goes as a record of zeros, and right behind it, as a pack, what the disk says that it holds::

    block     |  hole  |data|    hole    |data|
    stream    ZERO_BLOCK  PACK: two extents

Why no byte is lost that somebody writes into a hole meanwhile. The sender does three things, in this order: it takes
the marks of the block, asks the disk where its data is, and reads that. A writer writes, then marks. So for each write
there are two cases::

    take ─► ask ─► read          the write is marked after `take`: its mark stays, and a dirty round sends it
    write ─► mark ─► take ─► ask ─► read         it is marked before: `ask` finds data there, and `read` reads it

The second case needs an answer that is younger than `take`. What a disk remembers of its answers it forgets before a
write is marked (see ``forget_extents``), so what it says after `take` is young enough. What the bulk phase remembers
itself may be older, so it counts only where it says that all of the block is data; then the block goes whole.

The two records stand side by side. Where the last block overlaps its neighbour, the zeros reach into what came of that
one; but each of the two has marks of its own for what both hold, so the rule holds for each, and so it does for
whichever comes last.
"""

from __future__ import annotations

from .. import _core
from . import device, granules, state


def take(blk_mig: state.BlkMigState, bmds: device.BlkMigDevState, block: int) -> device.Pack | None:
    """Clear the marks of `block`, and return what it holds as a pack; None if it goes whole.

    It does where all of it is data, or so much in so many places that a pack would save little.
    """
    offset, nbytes = bmds.geometry.block_range(block)
    is_all_data = bmds.data_start <= offset and offset + nbytes <= bmds.data_end
    bmds.dirty_bitmap.take_block(block)
    if is_all_data or bmds.goes_whole or not blk_mig.zero_blocks:
        return None
    extents: list[tuple[int, int]] = []
    total, position, end = 0, offset, offset + nbytes
    while position < end and (found := bmds.backend.next_data(position)) is not None and found[0] < end:
        bmds.data_start, bmds.data_end = found
        start = found[0] // _core.SECTOR_SIZE * _core.SECTOR_SIZE
        position = min(-(-found[1] // _core.SECTOR_SIZE) * _core.SECTOR_SIZE, end)
        total += position - start
        if extents and sum(extents[-1]) == start:  # where a disk's answer ends, its data need not end
            start, _ = extents.pop()
        extents.append((start, position - start))
        if total * 4 >= nbytes * granules.WHOLE_QUARTERS or len(extents) > blk_mig.reads.pack_extents:
            return None
    return device.Pack(extents, total, nblocks=1) if extents else None
