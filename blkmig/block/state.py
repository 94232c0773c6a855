# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of the sending side: one :class:`BlkMigState` per migration, one `BlkMigDevState` per disk.

There are no globals and there is no lock here: everything belongs to the migration thread, but for the two things
that other threads change: the dirty bitmaps, by atomic operations alone (the writers), and the blocks in flight (the
reading threads, see `reads.py`).
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .. import _core, channel, errors, savevm
from . import device, log
from .reads import BlockReads

if TYPE_CHECKING:
    from . import proofs

TakeAnswer = Callable[[float], savevm.Digest | None]
"""Given seconds, return the answer that has come, or comes within them; None if there is none. May raise."""


class Comparison(Protocol):
    """What the bulk phase asks of a comparison with what the target holds; see `compare`."""

    def save_device_bulk(self, blk_mig: BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState) -> bool:
        """Do one step of a disk's bulk phase."""

    def settle(self, blk_mig: BlkMigState, f: channel.OutputQEMUFile, blk: device.BlkMigBlock) -> None:
        """Take a block that was read."""

    def section_ends(self, blk_mig: BlkMigState, f: channel.OutputQEMUFile) -> None:
        """Put what is still to be said of blocks that are settled."""

    def link_lost(self) -> None:
        """Have what is not settled be compared again, when no read is in flight any more."""


class BlkMigState:
    """The disks of one migration and how far they are."""

    # Set in save_setup, then read-only.
    reads: BlockReads
    bmds_list: list[device.BlkMigDevState]
    total_sector_sum: int = 0
    zero_blocks: bool = True
    has_checks: bool = False
    """Payloads have checksums."""

    leaves_zeros_out: bool = False
    """What is zeros of a pack does not travel."""

    proofs: proofs.Proofs | None = None
    """What proves the disks beside the stream; None where nobody asked for that."""
    comparison: Comparison | None = None
    """What the bulk phase goes by where the target holds old copies; None where it does not."""

    # Migration thread only.
    blk_list: collections.deque[device.BlkMigBlock]
    """Blocks that were read and wait to be sent, in the order in which their reads completed."""

    submitted: int = 0
    """Reads in flight."""

    in_flight_bytes: int = 0
    """What was submitted and is not sent yet, whole blocks with 1 MiB."""

    sent_bytes: int = 0
    """What was sent of the disks, whole blocks and zero blocks with 1 MiB."""

    transferred: int = 0
    """Blocks sent, zero blocks included; a block that is sent again counts again."""

    zero_transferred: int = 0
    """Zero blocks among them."""

    packs: int = 0
    pack_bytes: int = 0
    """Packs sent, and the bytes of the disks in them."""

    counted_packs: int = 0
    """Packs as the receiver counts them: those that it has not acknowledged when the link is lost do not count."""

    log: log.SentLog | None = None
    """What was sent and is not acknowledged; None where nothing is, because there is no session."""

    same_bytes: int = 0
    """What the target had already of the data that the bulk phase has read, zeros not counted."""

    last_sent: tuple[device.BlkMigDevState, int] | None = None
    """The disk and the block that were sent last."""

    is_interrupted: bool = False
    """A section is being written, or an exception has ended one: then a block may have been taken and never sent."""

    prev_progress: int = -1
    bulk_completed: bool = False
    dirty_disk: int = 0
    """Index of the disk at which the dirty round is."""

    round_number: int = 0
    """0 in the bulk phase, then the number of the dirty round."""

    round_dirty_bytes: int = 0
    """What the round had to send when it began."""

    is_last_round: bool = False
    """No round follows when this one is over, but the pause or the end."""

    is_fixed: bool = False
    """What was sent is the whole image, and was so while the writers were held: END has nothing to add."""

    fetch_seconds: float = 0.0
    """How long it took to fetch what is dirty when this round began, in seconds: the pause has to fetch it, too."""

    def __init__(
        self,
        *,
        reads: BlockReads,
        bmds_list: list[device.BlkMigDevState] | None = None,
        total_sector_sum: int = 0,
        zero_blocks: bool = True,
        has_checks: bool = False,
        leaves_zeros_out: bool = False,
    ) -> None:
        self.reads = reads
        self.bmds_list = bmds_list or []
        self.total_sector_sum = total_sector_sum
        self.zero_blocks = zero_blocks
        self.has_checks, self.leaves_zeros_out = has_checks, leaves_zeros_out
        self.blk_list = collections.deque()

    def prove(self) -> None:
        """Prove the disks beside the stream from now on; of `bmds_list` all are there."""
        from . import proofs

        self.proofs = proofs.Proofs(self.bmds_list)

    @property
    def read_done(self) -> int:
        """Return how many blocks were read and wait to be sent."""
        return len(self.blk_list)

    def granule(self) -> int:
        """Return how many bytes one write makes dirty at least; of several disks, the least."""
        return min((bmds.granule for bmds in self.bmds_list), default=_core.BLOCK_SIZE)

    def dirty_bytes(self) -> int:
        """Return the bytes that the marks of all disks would have to be sent if nobody wrote any more."""
        return sum(bmds.dirty_bytes() for bmds in self.bmds_list)

    def bulk_remaining_bytes(self) -> int:
        """Return what the bulk phase has not yet submitted, over all disks."""
        return sum(
            (bmds.geometry.total_sectors - min(bmds.cur_sector, bmds.geometry.total_sectors)) * _core.SECTOR_SIZE
            + bmds.again.count(0, len(bmds.again)) * _core.BLOCK_SIZE
            for bmds in self.bmds_list
            if not bmds.bulk_completed
        )

    def bytes_total(self) -> int:
        """Return the size of all disks."""
        return self.total_sector_sum * _core.SECTOR_SIZE

    def bytes_transferred(self) -> int:
        """Return how much of the disks was sent (or skipped, with a shared base) at least once."""
        return sum(bmds.completed_sectors for bmds in self.bmds_list) * _core.SECTOR_SIZE

    def bytes_remaining(self) -> int:
        """Return how much of the disks was not sent even once."""
        return self.bytes_total() - self.bytes_transferred()

    def release(self, *, waits: bool = True) -> None:
        """Give everything back, whatever fails on the way; the first error is raised at the end. Blocks.

        Without `waits`, reads in flight are left alone, which may hang: their disks must stay open.
        """
        proofs = [] if self.proofs is None else [self.proofs.close]
        blockers = [bmds.blocker.close for bmds in reversed(self.bmds_list)]
        # The reads first: none may be in flight when the disks are let go.
        errors.each([*([self.reads.close, *proofs] if waits else []), self.blk_list.clear, *blockers])
