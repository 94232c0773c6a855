# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration tells about itself: statistics that can be read at any time, and the events of `on_progress`.

Sizes are bytes, times are seconds, rates are bytes per second. Everything counts what was sent or written, never
what was only submitted.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from . import units

Status = Literal["none", "setup", "active", "device", "completed", "failed", "cancelling", "cancelled"]
"""The states of a migration, in QEMU's words; "device" is the last pass, with the writers held."""

StreamFormat = Literal["block", "blkmig"]
"""The section that carries the disks: QEMU's, or the one between two blkmigs."""

SizeSource = Literal["stream", "target", "option", "inferred"]
Phase = Literal["setup", "bulk", "dirty", "switchover", "waiting"]
"""What a migration does: "waiting" is for the target, which has everything and makes it durable."""

ReceivingPhase = Literal["bulk", "dirty", "storing"]
"""What comes, as far as the stream says so; "storing" is after its end, until everything is durable and checked."""


@dataclasses.dataclass(slots=True)
class RoundStatistics:
    """One pass over the disks: number 0 is the bulk phase, the others are dirty rounds, the last is the final pass."""

    number: int
    dirty_bytes: int
    """Dirty when the round began (for the bulk phase: the size of the disks)."""

    transferred: int = 0
    """Bytes on the wire."""

    seconds: float = 0.0
    redirtied_bytes: int = 0
    """Dirtied by the writers while the round ran."""

    blocks: int = 0
    """Blocks sent, zero blocks included. No block and no pack was, if the final pass began instead of the round."""

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

    transferred: int = 0
    """Bytes that the channel took, container included."""

    blocks: int = 0
    """Blocks sent, each time one was sent, zero blocks included."""

    zero_blocks: int = 0
    packs: int = 0
    """Packs sent, with only what was dirty of blocks; the section `blkmig` has them."""

    pack_bytes: int = 0
    """Bytes of the disks in them."""

    packed_blocks: int = 0
    """Blocks of which packs were sent; each would have been sent whole."""

    rounds: list[RoundStatistics] = dataclasses.field(default_factory=list)
    """The bulk phase, the dirty rounds (of very many the last thousand) and the final pass."""

    setup_time: float = 0.0
    total_time: float = 0.0
    downtime: float | None = None
    """From the moment the writers were held to their release, or to the target's word when the disk moved."""

    downtime_limit: float = 0.0
    """The limit that was asked for; a longer downtime did not keep it."""

    pauses_given_up: int = 0
    """Pauses that took longer than their bound: the writers went on, and the migration went back to rounds."""

    downtime_given_up: float = 0.0
    """Seconds that the writers were held in the pauses that were given up."""

    expected_downtime: float | None = None
    """As in `Progressed`."""

    bandwidth: float = 0.0
    dirty_rate: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)
    """What a user should know although nothing failed: sources that other programs changed ..."""

    @property
    def dirty_rounds(self) -> int:
        """Return how many rounds between the bulk phase and the final pass sent anything."""
        left_out = self.rounds[-1].number + 1 - len(self.rounds) if self.rounds else 0
        return left_out + sum(entry.blocks + entry.packs > 0 for entry in self.rounds[1:-1])

    @property
    def saved_by_packs(self) -> int:
        """Return how many bytes less packs have sent than whole blocks would have."""
        return self.packed_blocks * units.MiB - self.pack_bytes

    @property
    def throughput(self) -> float:
        """Disk bytes per second over the whole migration, holes included."""
        return self.disk_bytes / self.total_time if self.total_time else 0.0


@dataclasses.dataclass(slots=True)
class DiskStatistics:
    """The figures of one disk at the receiving end."""

    name: str
    size: int | None = None
    """Bytes; None while it is not known."""

    size_source: SizeSource = "inferred"
    blocks: int = 0
    """Blocks that came, each time one came, zero blocks included."""

    zero_blocks: int = 0
    resent_blocks: int = 0
    packs: int = 0
    """Packs that came, with parts of blocks that had come before."""

    pack_bytes: int = 0
    missing: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Ranges (first block, number of blocks) that never came; the first 1024 of them."""

    missing_blocks: int = 0
    """How many blocks never came."""

    verified: bool = False
    """The digest of all that the disk holds equals the one that the stream carries."""


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
    total_time: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)
    """What a user should know although nothing failed: sizes that were inferred, sections that were skipped ..."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a migration; `elapsed` seconds after it began."""

    elapsed: float


@dataclasses.dataclass(frozen=True, slots=True)
class StatusChanged(Event):
    """The migration is in another state."""

    status: Status


@dataclasses.dataclass(frozen=True, slots=True)
class Progressed(Event):
    """A regular report, about ten a second."""

    phase: Phase
    percent: float
    """Of what the phase has to send: of the data, in the bulk phase; of what was dirty when the round began."""

    transferred: int
    """Bytes on the wire."""

    remaining: int
    """Bytes of the disks that are left: data, not holes, and what is dirty. Where the disks have not been asked yet,
    it is an estimate."""

    total: int
    """Size of the disks, holes included."""

    bandwidth: float
    """What the link carried of late; 0 while nobody knows."""

    dirty_rate: float
    expected_downtime: float | None
    """What the pause would take if it began now; None in the bulk phase. No pause begins there, and what the first one
    will take is decided by the rounds that follow: of what is dirty by then, most is written once or again and again,
    and only rounds tell which. Who wants to know beforehand has `forecast`."""

    round_number: int
    disk_rate: float = 0.0
    """Bytes of the disks that the bulk phase passes in a second, zeros included, holes not."""

    time_left: float | None = None
    """Seconds until the pause, if everything goes on as it does; None while that is not known, or as it never comes."""


@dataclasses.dataclass(frozen=True, slots=True)
class NotConverging(Event):
    """Rounds do not leave less than those before them; told after the third such round, and again after twice as many.
    """

    dirty_rate: float
    bandwidth: float
    pending: int
    """Bytes that the last round has left."""

    threshold_size: int
    """Bytes that would fit the downtime limit."""

    round_number: int
    written_rate: float | None = None
    """What the writers write, by their disks' own count; None where nobody counts. They dirty more: whole granules."""

    granule: int = 1 << 20
    """Bytes that one write dirties at least."""


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
    """How much of the disks has come, holes included, as the source says."""

    bandwidth: float = 0.0
    """Bytes of the stream that came in a second, of late."""

    time_left: float | None = None
    """Seconds until every block has come once; None while that is not known."""

    phase: ReceivingPhase = "bulk"
