# SPDX-License-Identifier: GPL-2.0-or-later
"""What a source goes back to when the link is lost: what is in flight is dirty again, and the counts are those of a
barrier. What was sent is in `log`. Migration thread only.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from .. import _core
from . import coverage, log, send, state


def take_back_in_flight(blk_mig: state.BlkMigState) -> int:
    """Wait for the reads in flight and mark what they have read, which was not sent; return how many bytes. Blocks.

    The section that the lost link has cut is over with it.
    """
    while blk_mig.submitted:
        send.collect_one(blk_mig, wait=True)
    nbytes = blk_mig.in_flight_bytes
    while blk_mig.blk_list:
        blk = blk_mig.blk_list.popleft()
        assert blk.bmds is not None
        log.mark((blk.bmds, blk.block, 1, blk.taken, blk.compared is not None))
        if blk.compared is None:
            blk.bmds.completed_sectors += blk.bulk_sectors  # the cursor has passed it
        blk_mig.reads.put(blk)
    if blk_mig.comparison is not None:
        blk_mig.comparison.link_lost()
    blk_mig.in_flight_bytes = 0
    blk_mig.is_interrupted = False
    blk_mig.prev_progress = -1  # what was said of it last may be lost
    return nbytes


def take_back_sent(blk_mig: state.BlkMigState) -> int:
    """Mark what was sent and is not acknowledged, behind `take_back_in_flight`; return how many bytes.

    Blocks that were compared are compared again, in the bulk phase, which begins anew for them where it was over.
    """
    assert blk_mig.log is not None
    nbytes = blk_mig.log.take_back()
    for bmds in blk_mig.bmds_list:
        if count := bmds.again.count(0, len(bmds.again)):
            bmds.bulk_completed = blk_mig.bulk_completed = False
            missing = len(bmds.again) * _core.SECTORS_PER_BLOCK - bmds.geometry.total_sectors  # of the last block
            sectors = count * _core.SECTORS_PER_BLOCK - missing * bmds.again.test(len(bmds.again) - 1)
            bmds.completed_sectors = bmds.cur_sector - sectors
    return nbytes


class _DiskCounts(NamedTuple):
    resent_blocks: int
    resent_sum: int
    sent_blocks: int
    packs: coverage.PackTally


class Counts(NamedTuple):
    """What the description will say of all records up to a barrier."""

    packs: int
    same_bytes: int
    disks: list[_DiskCounts]

    @classmethod
    def of(cls, blk_mig: state.BlkMigState) -> Counts:
        """Keep what was counted so far."""
        return cls(
            blk_mig.counted_packs,
            blk_mig.same_bytes,
            [
                _DiskCounts(bmds.resent_blocks, bmds.resent_sum, bmds.sent_blocks, copy.copy(bmds.packs))
                for bmds in blk_mig.bmds_list
            ],
        )

    def restore(self, blk_mig: state.BlkMigState) -> None:
        """Count on from here; from now on every block that is sent counts as one that is sent again.

        Both ends go back to the last barrier that was acknowledged. Which of the later records have come, the source
        cannot know; so that the two ends count the same, nobody looks at that any more.
        """
        blk_mig.counted_packs, blk_mig.same_bytes = self.packs, self.same_bytes
        for bmds, counts in zip(blk_mig.bmds_list, self.disks, strict=True):
            bmds.resent_blocks, bmds.resent_sum = counts.resent_blocks, counts.resent_sum
            bmds.sent_blocks, bmds.packs = counts.sent_blocks, copy.copy(counts.packs)
            bmds.counts_all = True
