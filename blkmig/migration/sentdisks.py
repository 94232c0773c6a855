# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of each disk that is sent, copied to where others read them. Migration thread only."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _core, diskmap, stats
from ..block import device, state

SECONDS_PER_DISK = 0.005
"""Each disk puts the next copy off by so much: 200 disks are copied once a second, and 20 with each report."""


def update(statistics: stats.OutgoingStatistics, blk_mig: state.BlkMigState, dirty_bytes: Sequence[int] = ()) -> None:
    """Copy what was counted of each disk; `dirty_bytes` are those of the disks, in their order, where anybody knows."""
    if not statistics.disks:
        statistics.disks = {bmds.label: _new(bmds) for bmds in blk_mig.bmds_list}
    for bmds in blk_mig.bmds_list:
        found = statistics.disks[bmds.label]
        found.passed_bytes = min(bmds.completed_sectors * _core.SECTOR_SIZE, found.size)
        found.blocks, found.resent_blocks, found.packs = bmds.sent_blocks, bmds.resent_blocks, bmds.packs.packs
    for found, nbytes in zip(statistics.disks.values(), dirty_bytes, strict=False):
        found.dirty_bytes = nbytes


def all_is_sent(statistics: stats.OutgoingStatistics) -> None:
    """Note that nothing is left; what the writers of a copy have written since is not of this migration."""
    for found in statistics.disks.values():
        found.dirty_bytes = 0


def keep_maps(maps: dict[str, diskmap.DiskMap], blk_mig: state.BlkMigState) -> None:
    """Begin a map of each disk."""
    for bmds in blk_mig.bmds_list:
        maps[bmds.label] = bmds.map = diskmap.DiskMap(bmds.geometry.nblocks)


def _new(bmds: device.BlkMigDevState) -> stats.SentDiskStatistics:
    return stats.SentDiskStatistics(bmds.label, bmds.geometry.size)
