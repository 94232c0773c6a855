# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a compared block that differ, as a pack: in the buffer, and on the wire."""

from __future__ import annotations

from .. import _core, channel, disk
from . import askwords, device, send, state


def gather(blk: device.BlkMigBlock, ranges: list[askwords.Range]) -> None:
    """Make a pack of these ranges of the block in `blk`; its buffer holds only them afterwards."""
    data, done = blk.buf.data, 0
    extents: disk.Extents = []
    for offset, nbytes in ranges:
        nbytes = -(-nbytes // _core.SECTOR_SIZE) * _core.SECTOR_SIZE  # the end of the disk need not be one's
        data[done : done + nbytes] = data[offset - blk.offset :][:nbytes]
        extents.append((offset, nbytes))
        done += nbytes
    blk.buf.gathered()
    blk.pack = device.Pack(extents, done, 1)


def put(blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, blk: device.BlkMigBlock) -> None:
    """Send the pack in `blk`, which is a part of its block. May block."""
    assert blk.bmds is not None
    sectors, blk.bulk_sectors = blk.bulk_sectors, 0  # it is no block without its holes: the rest of it is the same
    send.send_pack(blk_mig, f, blk.bmds, blk)
    blk.bulk_sectors, blk.pack = sectors, None  # what is settled is the block
