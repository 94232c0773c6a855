# SPDX-License-Identifier: GPL-2.0-or-later
"""The bulk phase: each disk once from its start to its end, disk after disk.

The cursor `cur_sector` counts in steps of a block. Blocks below it were submitted, sent as holes, or skipped because
only the base holds them. Blocks from it on will be read later, so clearing their dirty bits loses nothing.
"""

from __future__ import annotations

import time

from .. import _core, _output, channel, errors, logs, params
from . import device, digests, holes, send, state

logger = logs.Logger(__name__)
MAX_RUN_BLOCKS = 64
RUN_SECONDS = 0.02
"""A run of blocks ends after this long, so that progress is told and a cancel is heard."""

SEARCH_BYTES = params.BDRV_SECTORS_PER_SEARCH * _core.SECTOR_SIZE


def find_bulk_device(blk_mig: state.BlkMigState) -> device.BlkMigDevState | None:
    """Return the disk that the bulk phase is at; None, and the phase is over, if there is none."""
    for bmds in blk_mig.bmds_list:
        if not bmds.bulk_completed:
            return bmds
    blk_mig.bulk_completed = True
    return None


def save_device_bulk(blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState) -> bool:
    """Do one step of a disk's bulk phase: pass over what is not sent, then send holes, then data as was decided.

    Data is a run of blocks that leaves at once, or one block that is submitted, maybe without its holes. The caller
    knows that there is room for a read. False: blocks have left, or the time is over, so nothing more should be
    submitted now.
    """
    if bmds.shared_base:
        if not skip_unallocated(blk_mig, bmds):
            return False
        if bmds.bulk_completed:
            return True
    mapping = bmds.mapping
    if send_hole(blk_mig, f, bmds):
        if mapping is None:
            f.flush()  # the slow side, the target's storage, starts early
            return True
        if bmds.bulk_completed:
            return True
    if mapping is not None and send_run(blk_mig, f, bmds, mapping):
        return False
    block = bmds.cur_sector // _core.SECTORS_PER_BLOCK
    blk = blk_mig.reads.get()
    pack = holes.take(blk_mig, bmds, block)  # before the read: a write that races it marks the block again
    blk.bulk_sectors = advance(bmds, 1)
    send.submit(blk_mig, bmds, block, blk, pack)
    return True


def send_run(
    blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState, mapping: _core.Mapping
) -> bool:
    """Send a run of data straight from a disk's file, in one call; False if the next block is none for that.

    Blocks that are zero, that cannot be read, or that a rate limit holds back go one by one. The records of holes leave
    with the data behind them.
    """
    block = bmds.cur_sector // _core.SECTORS_PER_BLOCK
    # The last block may start early. Where the known data ends, the disk has to be asked for more.
    count = min(bmds.data_end // _core.BLOCK_SIZE, bmds.geometry.nblocks - 1, block + MAX_RUN_BLOCKS) - block
    if count < 1 or bmds.data_start > block * _core.BLOCK_SIZE:
        return False
    blk, marks = blk_mig.reads.get(), bmds.dirty_bitmap
    blk_mig.last_sent = bmds, block  # where the stream is if this fails, or a little further
    try:
        count = f.put_file_blocks(
            mapping, block, count, bmds.name, blk.buf, marks.bits, marks.bits_per_block, RUN_SECONDS
        )
    except _output.PayloadError as error:
        raise send.cannot_read(bmds, error, error.offset, _core.BLOCK_SIZE) from error
    finally:
        blk_mig.reads.put(blk)
    if not count:
        return False
    blk_mig.last_sent = bmds, block + count - 1
    blk_mig.transferred += count
    blk_mig.sent_bytes += count * _core.BLOCK_SIZE
    bmds.sent_blocks += count
    if blk_mig.log is not None:
        blk_mig.log.add_run(bmds, block, count)
        send.count_again(bmds, block, count)
    bmds.completed_sectors += advance(bmds, count)
    if bmds.proof is not None:
        bmds.proof.bulk_sent(block, count)
    return True


def advance(bmds: device.BlkMigDevState, count: int) -> int:
    """Move the cursor over `count` blocks and return how many sectors that were."""
    before, total = bmds.cur_sector, bmds.geometry.total_sectors
    bmds.cur_sector = min(before + count * _core.SECTORS_PER_BLOCK, total)
    bmds.bulk_completed = bmds.cur_sector == total
    return bmds.cur_sector - before


def send_hole(blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState) -> bool:
    """Send the holes from the cursor on as records without payload; False if there are none, or nobody wants that."""
    block = bmds.cur_sector // _core.SECTORS_PER_BLOCK
    count = take_hole(bmds, block) if blk_mig.zero_blocks else 0
    if count:
        send.send_zero_run(blk_mig, f, bmds, block, count)
        if blk_mig.log is not None:
            blk_mig.log.add_run(bmds, block, count)
            send.count_again(bmds, block, count, is_zero=True)
        bmds.completed_sectors += advance(bmds, count)
        if bmds.proof is not None:
            bmds.proof.bulk_sent(block, count)
    return bool(count)


def take_hole(bmds: device.BlkMigDevState, block: int) -> int:
    """Return how many blocks from `block` on are holes, their dirty bits cleared; 0 if `block` may hold data.

    The disk's answer says which bits to clear. If one of them was set, the disk is asked once more, because its answer
    may be older than the write that set the bit. A write after the clearing marks its block, which is then looked at
    again.
    """
    count = hole_blocks(bmds, block)
    if count and bmds.dirty_bitmap.take_blocks(block, count):
        count = min(count, hole_blocks(bmds, block))
    return count


def hole_blocks(bmds: device.BlkMigDevState, block: int) -> int:
    """Return how many whole blocks from `block` on lie before the next data."""
    geometry = bmds.geometry
    offset, _ = geometry.block_range(block)
    if bmds.data_start <= offset < bmds.data_end:
        return 0
    extent = bmds.backend.next_data(offset)
    if extent is None:
        return geometry.nblocks - block
    bmds.data_start, bmds.data_end = extent
    # The last block is not a hole here: it ends where the disk ends, and there is data before that.
    return max(0, min(bmds.data_start // _core.BLOCK_SIZE, geometry.nblocks - 1) - block)


def skip_unallocated(blk_mig: state.BlkMigState, bmds: device.BlkMigDevState) -> bool:
    """Move the cursor to the block in which the top layer's next data begins, or to the end of the disk, then True.

    False: it has not come that far. With digests, what only the base holds is hashed, and that takes time.
    The bits of skipped blocks stay as they are: a write that allocates one of them marks it, and the dirty phase
    sends it, and takes note of its new digest.
    """
    while not bmds.bulk_completed:
        block = bmds.cur_sector // _core.SECTORS_PER_BLOCK
        offset, _ = bmds.geometry.block_range(block)
        if bmds.allocated_start <= offset < bmds.allocated_end:
            return True
        count, extent = next_base_blocks(bmds, block)
        done = count if bmds.disk_digests is None else hash_base(blk_mig, bmds, block, count)
        bmds.completed_sectors += advance(bmds, done)
        if bmds.map is not None:
            bmds.map.passed_empty(block, done)
        if done < count:
            return False
        if extent is not None:
            bmds.allocated_start, bmds.allocated_end = extent
            return True
    return True


def next_base_blocks(bmds: device.BlkMigDevState, block: int) -> tuple[int, tuple[int, int] | None]:
    """Return how many blocks from `block` on only the base holds, and the extent of the top layer that comes next.

    None: none is near, and there may be more such blocks.
    """
    offset, _ = bmds.geometry.block_range(block)
    nblocks, extent = bmds.geometry.nblocks, next_allocated(bmds, offset, SEARCH_BYTES)
    if extent is None:
        return min((offset + SEARCH_BYTES) // _core.BLOCK_SIZE, nblocks) - block, None
    return max(block, min(extent[0] // _core.BLOCK_SIZE, nblocks - 1)) - block, extent


def hash_base(blk_mig: state.BlkMigState, bmds: device.BlkMigDevState, block: int, count: int) -> int:
    """Take the digests of up to `count` blocks from `block` on, which are not sent; return of how many. Blocks.

    It ends after `RUN_SECONDS`. The caller knows that there is room for a read. What the phase before bulk has hashed
    is not hashed again.
    """
    deadline, done = time.monotonic() + RUN_SECONDS, 0
    blk = blk_mig.reads.get()
    try:
        while done < count and time.monotonic() < deadline:
            if known := count_hashed(bmds, block + done, block + count):
                done += known
                continue
            holes = min(hole_blocks(bmds, block + done), count - done)
            found = digests.ZERO_DIGEST * holes or digest_of_block(bmds, block + done, blk.buf)
            send.note_disk_digests(bmds, block + done, found)
            done += holes or 1
    finally:
        blk_mig.reads.put(blk)
    return done


def count_hashed(bmds: device.BlkMigDevState, block: int, stop: int) -> int:
    """Return how many blocks from `block` on, and before `stop`, the phase before bulk has hashed: see `base`."""
    if bmds.hashed is None:
        return 0
    end = bmds.hashed.find_next_clear(block, stop)
    return (stop if end < 0 else end) - block


def digest_of_block(bmds: device.BlkMigDevState, block: int, buf: _core.BlockBuffer) -> bytes:
    """Read a block and return its digest. Blocks."""
    is_zero = bmds.backend.read_block(buf, *bmds.geometry.block_range(block))
    return digests.ZERO_DIGEST if is_zero else digests.digest_of(buf.payload)


def next_allocated(bmds: device.BlkMigDevState, offset: int, nbytes: int) -> tuple[int, int] | None:
    """Ask the disk what its top layer holds; a disk that fails to answer counts as holding everything."""
    try:
        return bmds.backend.next_allocated(offset, nbytes)
    except errors.DeviceError as error:
        logger.warning("%s; sending what it may hold", error)
        return offset, offset + nbytes
