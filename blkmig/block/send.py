# SPDX-License-Identifier: GPL-2.0-or-later
"""Putting blocks on the wire: ``blk_send`` and what calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _core, _output, channel, errors
from . import checksums, compressed, coverage, device, digests, state, wire, zeropieces

if TYPE_CHECKING:
    from . import pieces, proof


def blk_send(blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, blk: device.BlkMigBlock) -> None:
    """Send `blk`: a header and 1 MiB, or a header alone if it is zero and `zero_blocks` is on.

    A zero block is pushed out at once, so that the slow side, the target's storage, starts early. May block.
    """
    bmds, buf = blk.bmds, blk.buf
    assert bmds is not None
    if bmds.sent is not None or not blk.bulk_sectors or bmds.counts_all:
        note_sent(bmds, blk, is_zero=buf.is_zero and blk_mig.zero_blocks)
    if buf.is_zero and blk_mig.zero_blocks:
        send_zero_run(blk_mig, f, bmds, blk.block, 1)
        f.flush()
        return
    blk_mig.last_sent = bmds, blk.block
    sector = blk.offset >> _core.SECTOR_BITS
    if blk.frame is not None:
        put_frame_head(blk_mig, f, bmds, blk.frame, nbytes=_core.BLOCK_SIZE, seed=sector)
        f.put_block_header(sector, _core.FLAG_DEVICE_BLOCK, bmds.name)
        f.put_buffer(blk.frame)
    else:
        if blk_mig.has_checks:
            f.put_buffer(checksums.record(buf.payload, sector))
        try:
            f.put_block(sector, _core.FLAG_DEVICE_BLOCK, bmds.name, buf)
        except _output.PayloadError as error:
            raise cannot_read(bmds, error, error.offset, _core.BLOCK_SIZE) from error
    blk_mig.transferred += 1
    blk_mig.sent_bytes += _core.BLOCK_SIZE
    bmds.sent_blocks += 1
    if bmds.digests is not None:
        note_digests(bmds, blk.block, digests.digest_of(buf.payload))


def put_frame_head(
    blk_mig: state.BlkMigState,
    f: channel.OutputQEMUFile,
    bmds: device.BlkMigDevState,
    frame: bytes,
    *,
    nbytes: int,
    seed: int,
) -> None:
    """Put what goes before the head of a block or pack whose payload of `nbytes` goes as `frame`. May block."""
    bmds.savings.by_compression += nbytes - len(frame)
    f.put_buffer((checksums.record(frame, seed) if blk_mig.has_checks else b"") + compressed.record(frame))


def send_pack(
    blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState, blk: device.BlkMigBlock
) -> None:
    """Send the pack in `blk` as one record; its bytes are copied, whatever becomes of those of blocks. May block.

    In the bulk phase it holds the data of a block, whose holes are said before.
    """
    pack = blk.pack
    assert pack is not None
    if blk.bulk_sectors:
        send_zero_run(blk_mig, f, bmds, blk.block, 1)
        count_again(bmds, blk.block, 1, is_zero=True)
        if _core.buffer_is_zero(blk.buf.data[: pack.nbytes]):
            return
        if bmds.map is not None:
            bmds.map.held_data(blk.block)
    blk_mig.last_sent = bmds, blk.block
    if blk.frame is not None:
        put_frame_head(blk_mig, f, bmds, blk.frame, nbytes=pack.nbytes, seed=pack.extents[0][0])
        f.put_pack_header(wire.FLAG_PACK, bmds.name, pack.extents)
        f.put_buffer(blk.frame)
    elif blk.bulk_sectors or not _put_without_zeros(blk_mig, f, bmds, pack, blk.buf.data[: pack.nbytes]):
        if blk_mig.has_checks:
            f.put_buffer(checksums.record(blk.buf.data[: pack.nbytes], pack.extents[0][0]))
        f.put_pack(wire.FLAG_PACK, bmds.name, pack.extents, blk.buf)
    bmds.packs.add(
        pack.extents,
        number=blk_mig.counted_packs,
        blocks=bmds.sent_blocks,
        resent=bmds.resent_blocks,
        resent_sum=bmds.resent_sum,
    )
    blk_mig.counted_packs += 1
    blk_mig.packs += 1
    blk_mig.pack_bytes += pack.nbytes
    bmds.savings.pack_went(pack.extents, pack.nbytes, bmds.geometry, blocks=bmds.sent_blocks)
    blk_mig.sent_bytes += pack.nbytes


def _put_without_zeros(
    blk_mig: state.BlkMigState,
    f: channel.OutputQEMUFile,
    bmds: device.BlkMigDevState,
    pack: device.Pack,
    payload: memoryview,
) -> bool:
    """Put a pack without the pieces of its `payload` that are zeros, if there are any; return whether. May block."""
    body = zeropieces.find(payload, pack.extents) if blk_mig.leaves_zeros_out else b""
    if not body:
        return False
    rest = b"".join(payload[start:stop] for start, stop in zeropieces.present(body, pack.extents))
    head = checksums.record(rest, pack.extents[0][0]) if blk_mig.has_checks else b""
    f.put_buffer(zeropieces.record(body) + head)
    f.put_pack_header(wire.FLAG_PACK, bmds.name, pack.extents)
    f.put_buffer(rest)
    bmds.savings.by_zeros += pack.nbytes - len(rest)
    return True


def send_zero_run(
    blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState, block: int, count: int
) -> None:
    """Put `count` zero blocks from `block` on as records without payload; they leave with what follows. May block."""
    blk_mig.last_sent = bmds, block
    offset, _ = bmds.geometry.block_range(block)
    last = bmds.geometry.nblocks - 1
    if count > 1 and block + count - 1 == last:  # the last block need not start at a whole MiB
        f.put_zero_records(offset >> _core.SECTOR_BITS, count - 1, bmds.name)
        offset, _ = bmds.geometry.block_range(last)
        f.put_zero_records(offset >> _core.SECTOR_BITS, 1, bmds.name)
    else:
        f.put_zero_records(offset >> _core.SECTOR_BITS, count, bmds.name)
    blk_mig.transferred += count
    blk_mig.sent_bytes += count * _core.BLOCK_SIZE
    bmds.sent_blocks += count
    bmds.savings.zeros_went(block, count, blocks=bmds.sent_blocks)
    blk_mig.zero_transferred += count
    if bmds.sent is not None:
        bmds.sent.set_range(block, count)
    if bmds.map is not None and not blk_mig.round_number:
        bmds.map.passed_empty(block, count)
    if bmds.digests is not None:
        note_digests(bmds, block, digests.ZERO_DIGEST * count)


def note_sent(bmds: device.BlkMigDevState, blk: device.BlkMigBlock, *, is_zero: bool) -> None:
    """Record that `blk` is sent. A dirty block was sent before, except, with a shared base, for the first time."""
    if bmds.counts_all or (not blk.bulk_sectors and (bmds.sent is None or bmds.sent.test(blk.block))):
        bmds.resent_blocks += 1
        bmds.resent_sum += coverage.resent_term(blk.block) + is_zero
    if bmds.sent is not None:
        bmds.sent.set(blk.block)


def note_proof(proven: proof.DiskProof, blk: device.BlkMigBlock) -> None:
    """Have a block of the bulk phase read again; take note of what a dirty round has sent."""
    if blk.compared is not None and blk.compared.is_again:
        return  # `compare` has taken note of it
    if blk.bulk_sectors:
        proven.bulk_sent(blk.block, 1)
    elif blk.pack is None:
        proven.block_sent(blk.block, blk.buf.data)
    else:
        proven.pack_sent(blk.block, blk.pack.extents, blk.buf.data)


def count_again(bmds: device.BlkMigDevState, block: int, count: int, *, is_zero: bool = False) -> None:
    """Count `count` blocks from `block` on, which bulk has sent past `blk_send`, where all of them count."""
    if bmds.counts_all:
        bmds.resent_blocks += count
        bmds.resent_sum += coverage.resent_term(block, count) + is_zero * count


def note_digests(bmds: device.BlkMigDevState, block: int, found: bytes) -> None:
    """Keep the digests of blocks that were sent, from `block` on."""
    assert bmds.digests is not None
    bmds.digests[block * digests.DIGEST_SIZE : block * digests.DIGEST_SIZE + len(found)] = found
    note_disk_digests(bmds, block, found)


def note_disk_digests(bmds: device.BlkMigDevState, block: int, found: bytes) -> None:
    """Keep the digests of blocks of the disk, whether they were sent or the target has them in its base."""
    if bmds.disk_digests is not None:
        bmds.disk_digests[block * digests.DIGEST_SIZE : block * digests.DIGEST_SIZE + len(found)] = found
    if bmds.tree is not None:
        bmds.tree.changed(block, len(found) // digests.DIGEST_SIZE)


def flush_blks(blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, *, wait: bool) -> bool:
    """Send every block whose read is completed and return whether there was one.

    With `wait`, if none is completed and one is in flight, it blocks until one is. A read error surfaces here, as
    :class:`~blkmig.errors.DeviceError` with disk, offset and errno; the other blocks stay in the list.
    """
    collect(blk_mig, wait=wait)
    sent = False
    while blk_mig.blk_list:
        blk = blk_mig.blk_list[0]
        bmds = blk.bmds
        assert bmds is not None
        if blk.error is not None:
            raise read_failure(blk)
        if blk.compared is not None and blk_mig.comparison is not None:
            blk_mig.comparison.settle(blk_mig, f, blk)
        elif blk.pack is None:
            blk_send(blk_mig, f, blk)
        else:
            send_pack(blk_mig, f, bmds, blk)
        if blk.compared is None or blk.bulk_sectors:  # else it is not settled
            if bmds.proof is not None:
                note_proof(bmds.proof, blk)
            log = blk_mig.log
            if log is not None:
                log.sent.append((bmds, blk.block, 1, blk.taken, blk.compared is not None))
                log.ranges += 1 if blk.taken is None else len(blk.taken)
        bmds.completed_sectors += blk.bulk_sectors
        blk_mig.in_flight_bytes -= blk.counted_bytes
        blk_mig.blk_list.popleft()
        blk_mig.reads.put(blk)
        sent = True
    return sent


def collect(blk_mig: state.BlkMigState, *, wait: bool) -> None:
    """Move the blocks whose reads are completed to `blk_list`; with `wait` and an empty list, wait for the first."""
    while blk_mig.submitted and collect_one(blk_mig, wait=wait and not blk_mig.blk_list):
        pass


def collect_one(blk_mig: state.BlkMigState, *, wait: bool) -> bool:
    """Move one block whose read is completed to `blk_list`; False if there is none."""
    blk = blk_mig.reads.collect(wait=wait)
    if blk is None:
        return False
    blk_mig.submitted -= 1
    blk_mig.blk_list.append(blk)
    return True


def read_failure(blk: device.BlkMigBlock) -> BaseException:
    """Return the error of a failed read; what is not a disk's own error is wrapped, so that it names the disk."""
    assert blk.bmds is not None
    if isinstance(blk.error, OSError):
        error = cannot_read(blk.bmds, blk.error, blk.offset, blk.nbytes)
        error.__cause__ = blk.error
        return error
    assert blk.error is not None
    return blk.error


def cannot_read(bmds: device.BlkMigDevState, cause: OSError, offset: int, nbytes: int) -> errors.DeviceError:
    """Return the error for a block of a disk that cannot be read."""
    return errors.DeviceError("cannot read", device=bmds.label, cause=cause, offset=offset, nbytes=nbytes)


def send_progress(blk_mig: state.BlkMigState, f: channel.OutputQEMUFile) -> None:
    """Send a PROGRESS record if the overall percentage has changed."""
    if blk_mig.prev_progress == 100:
        return
    if blk_mig.total_sector_sum:
        percent = sum(bmds.completed_sectors for bmds in blk_mig.bmds_list) * 100 // blk_mig.total_sector_sum
    else:
        percent = 100
    if percent > blk_mig.prev_progress:
        blk_mig.prev_progress = percent
        f.put_be64(percent << _core.SECTOR_BITS | _core.FLAG_PROGRESS)


def submit(
    blk_mig: state.BlkMigState,
    bmds: device.BlkMigDevState,
    block: int,
    blk: device.BlkMigBlock,
    pack: device.Pack | None = None,
    *,
    compared: pieces.ComparedBlock | None = None,
) -> None:
    """Start reading `block` of `bmds`, or the `pack` that begins in it. The caller has cleared their dirty bits.

    What was read is sent, or `compared` first.
    """
    blk.bmds, blk.block, blk.pack, blk.compared, blk.has_payload = bmds, block, pack, compared, True
    if pack is None:
        blk.nblocks, blk.counted_bytes = 1, _core.BLOCK_SIZE
        blk.offset, blk.nbytes = bmds.geometry.block_range(block)
    else:
        blk.nblocks, blk.counted_bytes = pack.nblocks, pack.nbytes
        blk.offset, blk.nbytes = pack.extents[0][0], pack.nbytes
    blk.taken = None if pack is None or blk.bulk_sectors else pack.extents
    blk_mig.submitted += 1
    blk_mig.in_flight_bytes += blk.counted_bytes
    blk_mig.reads.submit(blk)
