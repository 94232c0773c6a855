# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration tells about itself: statistics that can be read at any time, and the events of `on_progress`.

Sizes are bytes, times are seconds, rates are bytes per second. All figures count what was sent or written, never what
was only submitted.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from .diskstats import DiskStatistics as DiskStatistics
from .diskstats import SentDiskStatistics as SentDiskStatistics
from .diskstats import SizeSource as SizeSource

Status = Literal["none", "setup", "active", "reconnecting", "device", "completed", "failed", "cancelling", "cancelled"]
"""The states of a migration, in QEMU's words; "device" is the last pass, with the writers held. In "reconnecting", the
link was lost: the source tries to come again, the target waits for it."""

StreamFormat = Literal["block", "blkmig"]
"""The section that carries the disks: QEMU's, or the one between two blkmigs."""

Phase = Literal["setup", "bulk", "dirty", "switchover", "waiting"]
"""What a migration does. In "waiting" it waits for the target, which brings everything to stable storage."""

ReceivingPhase = Literal["bulk", "dirty", "storing"]
"""What the receiving end does, as far as the stream tells. "storing" is the time from the stream's end until everything
is on stable storage and checked."""


@dataclasses.dataclass(slots=True)
class RoundStatistics:
    """One pass over the disks: number 0 is the bulk phase, the others are dirty rounds, the last is the final pass."""

    number: int
    dirty_bytes: int
    """Bytes that were dirty when the round began; for the bulk phase, the size of the disks."""

    transferred: int = 0
    """Bytes on the wire."""

    seconds: float = 0.0
    redirtied_bytes: int = 0
    """Bytes that the writers dirtied while the round ran."""

    blocks: int = 0
    """Blocks sent, zero blocks included. It is 0, as `packs` is, if the final pass began instead of the round."""

    packs: int = 0
    """Packs sent."""

    @property
    def bandwidth(self) -> float:
        """Wire bytes per second of this round."""
        return self.transferred / self.seconds if self.seconds else 0.0

    @property
    def dirty_rate(self) -> float:
        """Bytes per second that the writers dirtied while the round ran."""
        return self.redirtied_bytes / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(slots=True)
class OutgoingStatistics:
    """The figures of an outgoing migration. The migration thread writes them; readers see each figure whole."""

    status: Status = "none"
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
    taken_back_bytes: int = 0
    """How often the link was lost and came back, and how many bytes of the disks were to be sent again therefore."""

    same_bytes: int = 0  # of data, which the target held already; zeros are not counted
    rounds: list[RoundStatistics] = dataclasses.field(default_factory=list)
    """The bulk phase, the dirty rounds (the last thousand of them) and the final pass."""

    setup_time: float = 0.0
    total_time: float = 0.0
    downtime: float | None = None
    """Seconds from the hold of the writers to their release; if the disk moved, to the target's word."""

    downtime_limit: float = 0.0
    """The limit that the caller set; `downtime` may have been longer."""

    pauses_given_up: int = 0
    """Pauses that took longer than their bound: the writers went on, and the migration went back to rounds."""

    downtime_given_up: float = 0.0
    """Seconds that the writers were held in the pauses that were given up."""

    expected_downtime: float | None = None
    """See :class:`Progressed`."""

    bandwidth: float = 0.0
    dirty_rate: float = 0.0
    verified: bool = False  # the target has read its storage back, and it holds what the disks did in the pause
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
    format: StreamFormat | None = None
    """The section that came; None before it starts."""

    transferred: int = 0
    """Bytes of the stream that were read."""

    disks: dict[str, DiskStatistics] = dataclasses.field(default_factory=dict)
    percent: int = 0
    reconnects: int = 0
    """How often the link was lost and the source came again."""

    total_time: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)
    """What a user should know although nothing failed, such as sizes that were inferred or skipped sections."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a migration; `elapsed` seconds after it began."""

    elapsed: float


@dataclasses.dataclass(frozen=True, slots=True)
class StatusChanged(Event):
    """The migration is in another state."""

    status: Status


@dataclasses.dataclass(frozen=True, slots=True)
class Acknowledged(Event):
    """The target has everything on stable storage that was sent before barrier `number`."""

    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reconnecting(Event):
    """The link was lost, and is opened again."""

    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Progressed(Event):
    """A regular report, about ten a second."""

    phase: Phase
    percent: float
    """The part of the phase that is done: in the bulk phase of all data, in a round of what was dirty at its begin."""

    transferred: int
    """Bytes on the wire."""

    remaining: int
    """Bytes of the disks that are still to be sent: data without holes, and what is dirty. It is an estimate for those
    parts of the disks that have not been asked yet."""

    total: int
    """Size of the disks, holes included."""

    bandwidth: float
    """What the link has carried of late; 0 while that is not known."""

    dirty_rate: float
    expected_downtime: float | None
    """Seconds that the pause would take if it began now; None in the bulk phase, where no pause begins. How long the
    first pause takes depends on the rounds: only they tell which blocks are written once, and which again and again. A
    prediction before the migration is what `forecast` is for."""

    round_number: int
    disk_rate: float = 0.0
    """Bytes of the disks that the bulk phase reads in a second: zeros count, holes do not."""

    time_left: float | None = None
    """Seconds until the pause, at the present rates; None if that is not known, or if the pause would never come."""
    same_bytes: int = 0  # of data, which the target held already, so that they were not sent
    saved_by_compression: int = 0  # with what is on the wire, about what that is of the disks


@dataclasses.dataclass(frozen=True, slots=True)
class NotConverging(Event):
    """The migration does not converge: the rounds leave as much as those before them.

    It is told after the third such round, and then each time their number has doubled.
    """

    dirty_rate: float
    bandwidth: float
    pending: int
    """Bytes that the last round has left."""

    threshold_size: int
    """Bytes that would fit the downtime limit."""

    round_number: int
    written_rate: float | None = None
    """Bytes per second that the writers write, as the disks count them; None if they do not. The dirty rate is higher,
    because it counts whole granules."""

    granule: int = 1 << 20
    """The least number of bytes that one write dirties."""


@dataclasses.dataclass(frozen=True, slots=True)
class RoundEnded(Event):
    """A pass over the disks is done."""

    round: RoundStatistics
    pending: int
    threshold_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Received(Event):
    """A regular report of the receiving end."""

    transferred: int
    blocks: int
    zero_blocks: int
    percent: int
    """The part of the disks that has come, holes included, as the source says."""

    bandwidth: float = 0.0
    """Bytes of the stream that have come in a second, of late."""

    time_left: float | None = None
    """Seconds until every block has come once; None while that is not known."""
    phase: ReceivingPhase = "bulk"
    same_bytes: int = 0  # which the targets held already, as the source says; zeros count, too
    saved_by_compression: int = 0
