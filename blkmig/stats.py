# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration tells about itself: statistics that can be read at any time, and the events of `on_progress`, which
are loaded when somebody listens.

Sizes are bytes, times are seconds, rates are bytes per second. All figures count what was sent or written, never what
was only submitted.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from . import later
from .diskstats import DiskStatistics as DiskStatistics
from .diskstats import SentDiskStatistics as SentDiskStatistics
from .diskstats import SizeSource as SizeSource
from .roundstats import MAX_ROUNDS_KEPT as MAX_ROUNDS_KEPT
from .roundstats import Phase as Phase
from .roundstats import ReceivingPhase as ReceivingPhase
from .roundstats import RoundStatistics as RoundStatistics
from .roundstats import Status as Status
from .roundstats import StreamFormat as StreamFormat

if TYPE_CHECKING:
    from .events import Acknowledged as Acknowledged
    from .events import DisksComplete as DisksComplete
    from .events import Event as Event
    from .events import NotConverging as NotConverging
    from .events import Progressed as Progressed
    from .events import Received as Received
    from .events import Reconnecting as Reconnecting
    from .events import RoundEnded as RoundEnded
    from .events import StatusChanged as StatusChanged

__getattr__ = later.opener(
    __name__,
    events="Acknowledged DisksComplete Event NotConverging Progressed Received Reconnecting RoundEnded StatusChanged",
)

@dataclasses.dataclass(slots=True)
class OutgoingStatistics:
    """The figures of an outgoing migration. The migration thread writes them; readers see each figure whole."""

    status: Status = "none"
    """The state of the migration."""

    format: StreamFormat | None = None
    """The section that is sent; None before that is decided."""

    disk_bytes: int = 0
    """Size of all disks of the migration."""

    disks: dict[str, SentDiskStatistics] = dataclasses.field(default_factory=dict)
    """The same, and what was sent, of each of them."""

    transferred: int = 0
    """Bytes that the channel took, container included."""

    blocks: int = 0
    """Blocks sent, zero blocks included; a block that is sent again counts again."""

    zero_blocks: int = 0
    """Blocks sent as zeros; the data of one with holes follows as a pack."""

    packs: int = 0
    """Packs sent, with only what was dirty of blocks, or data in the bulk phase; the section `blkmig` has them."""

    pack_bytes: int = 0
    """Bytes of the disks in them."""

    saved_by_zeros: int = 0
    """Bytes of zeros that were not sent."""

    saved_by_granularity: int = 0
    """Bytes that packs left out of the blocks of which they have anything."""

    saved_by_compression: int = 0
    """Bytes by which payloads that were compressed were shorter on the wire."""

    barriers: int = 0
    """Barriers that the target has acknowledged: what was sent before them is on stable storage there."""

    connections: int = 1
    """Over how many connections the stream goes."""

    reconnects: int = 0
    """How often the link was lost and came back."""

    taken_back_bytes: int = 0
    """Bytes of the disks that had to be sent again because of that."""

    same_bytes: int = 0
    """Bytes of data that the target held already; zeros are not counted."""

    rounds: list[RoundStatistics] = dataclasses.field(default_factory=list)
    """The bulk phase, the dirty rounds (the last thousand of them) and the final pass."""

    setup_time: float = 0.0
    """Seconds until the migration was set up: connected, with its disks in use, and the target's reply."""

    total_time: float = 0.0
    """Seconds since the migration began; while it runs, up to its last section."""

    downtime: float | None = None
    """Seconds from the hold of the writers to their release; if the disk moved, to the target's word."""

    downtime_limit: float = 0.0
    """The limit that the caller set; `downtime` may have been longer."""

    pauses_given_up: int = 0
    """Pauses that took longer than their bound, or lost their link: the writers went on, and the rounds, too."""

    downtime_given_up: float = 0.0
    """Seconds that the writers were held in the pauses that were given up."""

    expected_downtime: float | None = None
    """See :class:`Progressed`."""

    bandwidth: float = 0.0
    """What the link has carried of late in a second; 0 while that is not known."""

    dirty_rate: float = 0.0
    """What the writers have dirtied in a second, in the last round that has ended."""

    verified: bool = False
    """Whether the target has read its storage back, and it holds what the disks did in the pause."""

    notes: list[str] = dataclasses.field(default_factory=list)
    """What a user should know although nothing failed, such as sources that other programs changed."""

    @property
    def dirty_rounds(self) -> int:
        """Return how many rounds between the bulk phase and the final pass sent anything."""
        left_out = self.rounds[-1].number + 1 - len(self.rounds) if self.rounds else 0
        return left_out + sum(entry.blocks + entry.packs > 0 for entry in self.rounds[1:-1])

    @property
    def throughput(self) -> float:
        """Disk bytes per second over the whole migration, holes included."""
        return self.disk_bytes / self.total_time if self.total_time else 0.0


@dataclasses.dataclass(slots=True)
class IncomingStatistics:
    """The figures of an incoming migration."""

    status: Status = "none"
    """The state of the migration."""

    format: StreamFormat | None = None
    """The section that came; None before it starts."""

    transferred: int = 0
    """Bytes of the stream that were read."""

    disks: dict[str, DiskStatistics] = dataclasses.field(default_factory=dict)
    """The figures of each disk, by its name; it is there from its first block on, or from the table that names it."""

    percent: int = 0
    """The part of the disks that has come, holes included, as the source says."""

    reconnects: int = 0
    """How often the link was lost and the source came again."""

    total_time: float = 0.0
    """Seconds since the source has connected; while the stream comes, up to the last report of `on_progress`."""

    notes: list[str] = dataclasses.field(default_factory=list)
    """What a user should know although nothing failed, such as sizes that were inferred or skipped sections."""
