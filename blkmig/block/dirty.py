# SPDX-License-Identifier: GPL-2.0-or-later
"""The dirty phase: rounds over the disks that send what was written since it was last read.

A round visits each disk once, from where the cursor stands to the end. The cursor moves on after each block, so a
writer that keeps one block dirty costs one block a round, and no disk and no high sector starves.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import _core, disk, errors
from . import device, packs, send, state

FETCH_SECONDS = 0.1
FETCH_SHARE = 33
"""While a round lasts, marks are fetched every so many seconds, and so seldom that it takes a thirtieth of the time."""


class FetchAhead:
    """Fetches now and then what remote trackers know, in the bulk phase and in rounds that last longer.

    What is written before the round has come to it goes with the round. If its mark came only with the next round, it
    would go a second time: of random writes to a whole disk, that is half of all that are made in the bulk phase. The
    marks of a disk that is written in this process are here at once, and such a fetch costs nothing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = clock() + FETCH_SECONDS

    def look(self, blk_mig: state.BlkMigState) -> None:
        """Fetch what is known, if it is time for that. Between two blocks; blocks as `sync_disks` does."""
        began = self._clock()
        if began >= self._due and not blk_mig.is_last_round:
            disk.sync_disks(bmds.backend for bmds in blk_mig.bmds_list)
            self._took(began)

    def begin_round(self, blk_mig: state.BlkMigState) -> None:
        """Begin a round, which fetches, too, and note how long that took."""
        began = self._clock()
        begin_round(blk_mig)
        blk_mig.fetch_seconds = self._took(began)

    def _took(self, began: float) -> float:
        ended = self._clock()
        self._due = ended + max(FETCH_SECONDS, FETCH_SHARE * (ended - began))
        return ended - began


def begin_round(blk_mig: state.BlkMigState) -> None:
    """Fetch what remote trackers know and put the cursors at the start."""
    disk.sync_disks(bmds.backend for bmds in blk_mig.bmds_list)
    for bmds in blk_mig.bmds_list:
        bmds.cur_dirty = 0
    blk_mig.dirty_disk = 0
    blk_mig.round_number += 1
    blk_mig.round_dirty_bytes = blk_mig.dirty_bytes()


def round_over(blk_mig: state.BlkMigState) -> bool:
    """Return whether this round has visited every disk."""
    return blk_mig.dirty_disk >= len(blk_mig.bmds_list)


def blk_mig_save_dirty_block(blk_mig: state.BlkMigState) -> bool:
    """Submit the next dirty block of this round; False if the round is over.

    The caller knows that there is room for a read.
    """
    while not round_over(blk_mig):
        bmds = blk_mig.bmds_list[blk_mig.dirty_disk]
        block = bmds.dirty_bitmap.next_dirty(bmds.cur_dirty // _core.SECTORS_PER_BLOCK)
        if block >= 0:
            save_device_dirty(blk_mig, bmds, block)
            return True
        blk_mig.dirty_disk += 1
    return False


def save_device_dirty(blk_mig: state.BlkMigState, bmds: device.BlkMigDevState, block: int) -> None:
    """Submit one dirty block, or what is dirty of it, and of blocks behind it, as a pack.

    An older read of the same block is waited for, so that its contents are sent first.
    """
    while blk_mig.submitted and bmds.aio_bitmap.test(block):
        send.collect_one(blk_mig, wait=True)
    blk = blk_mig.reads.get()
    blk.bulk_sectors = 0
    # The marks go before the read: a write that races it marks the block again.
    is_whole = bmds.dirty_bitmap.take_block_if(block, bmds.whole_from)
    pack = None if is_whole else packs.take(bmds, block, blk_mig.reads.pack_extents)
    bmds.cur_dirty = (block + (1 if pack is None else pack.nblocks)) * _core.SECTORS_PER_BLOCK
    if bmds.map is not None:
        bmds.map.sent_again(block, () if pack is None else pack.extents)
    send.submit(blk_mig, bmds, block, blk, pack)


def check_clean(blk_mig: state.BlkMigState) -> None:
    """Raise :class:`~blkmig.errors.DeviceError` if a disk was written or cut since the last round began."""
    disk.sync_disks(bmds.backend for bmds in blk_mig.bmds_list)
    for bmds in blk_mig.bmds_list:
        if bmds.backend.size != bmds.geometry.size:
            cause = f"it has {bmds.backend.size} bytes now, and had {bmds.geometry.size}: send it again"
            raise errors.DeviceError("has changed its size", device=bmds.label, cause=cause)
        block = bmds.dirty_bitmap.next_dirty(0)
        if block >= 0:
            raise errors.DeviceError(
                "was written in the last pass",
                device=bmds.label,
                cause="somebody writes it although its writers are held; the copy would be torn",
                offset=bmds.geometry.block_range(block)[0],
            )
