# SPDX-License-Identifier: GPL-2.0-or-later
"""What `on_progress` is told. The names are those of `stats`, which loads them when somebody listens.

Sizes are bytes, times are seconds, rates are bytes per second.
"""

from __future__ import annotations

import dataclasses

from .roundstats import Phase, ReceivingPhase, RoundStatistics, Status


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a migration."""

    elapsed: float
    """Seconds since the migration began."""


@dataclasses.dataclass(frozen=True, slots=True)
class StatusChanged(Event):
    """The migration is in another state."""

    status: Status
    """The state that it is in now."""


@dataclasses.dataclass(frozen=True, slots=True)
class Acknowledged(Event):
    """The target has everything on stable storage that was sent before a barrier."""

    number: int
    """The number of the barrier: 1, 2, 3 ..."""


@dataclasses.dataclass(frozen=True, slots=True)
class DisksComplete(Event):
    """All disks are complete at the target: on stable storage, under their names and, when the receiving end tells it,
    unlocked. Whoever waits for them need not wait for what the migration still does.

    Each end tells it once: the receiving end when it has said so to the source, or at its end if it reads the targets
    back or the source awaits no word; the sending end when the target has said so. Of a VM, the disks are in use there
    once its QEMU has handed over."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reconnecting(Event):
    """The link was lost, and is opened again."""

    why: str
    """What was wrong with it, as the error of a lost link says it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Progressed(Event):
    """A regular report of the sending end, about ten a second."""

    phase: Phase
    """What the migration does now."""

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
    """What the writers have dirtied in a second: of late in the bulk phase, then in the last round that has ended."""

    expected_downtime: float | None
    """Seconds that the pause would take if it began now; None in the bulk phase, where no pause begins. How long the
    first pause takes depends on the rounds: only they tell which blocks are written once, and which again and again. A
    prediction before the migration is what `forecast` is for."""

    round_number: int
    """Which round it is: 0 in the bulk phase, then 1, 2, 3 ..."""

    disk_rate: float = 0.0
    """Bytes of the disks that the bulk phase reads in a second: zeros count, holes do not."""

    time_left: float | None = None
    """Seconds until the pause, at the present rates; None if that is not known, or if the pause would never come."""

    same_bytes: int = 0
    """Bytes of data that the target held already, so that they were not sent."""

    saved_by_compression: int = 0
    """Bytes by which payloads that were compressed were shorter on the wire."""


@dataclasses.dataclass(frozen=True, slots=True)
class NotConverging(Event):
    """The migration does not converge: the rounds leave as much as those before them.

    It is told after the third such round, and then each time their number has doubled.
    """

    dirty_rate: float
    """What the writers dirty in a second."""

    bandwidth: float
    """What the link carries in a second."""

    pending: int
    """Bytes that the last round has left."""

    threshold_size: int
    """Bytes that would fit the downtime limit."""

    round_number: int
    """The round that has ended."""

    written_rate: float | None = None
    """Bytes per second that the writers write, as the disks count them; None if they do not. The dirty rate is higher,
    because it counts whole granules."""

    granule: int = 1 << 20
    """The least number of bytes that one write dirties."""


@dataclasses.dataclass(frozen=True, slots=True)
class RoundEnded(Event):
    """A pass over the disks is done."""

    round: RoundStatistics
    """Its figures; number 0 is the bulk phase."""

    pending: int
    """Bytes that are left to be sent."""

    threshold_size: int
    """Bytes that would fit the downtime limit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Received(Event):
    """A regular report of the receiving end."""

    transferred: int
    """Bytes of the stream that have come."""

    blocks: int
    """Blocks that have come, zero blocks included; one that comes again counts again."""

    zero_blocks: int
    """Those that came as zeros."""

    percent: int
    """The part of the disks that has come, holes included, as the source says."""

    bandwidth: float = 0.0
    """Bytes of the stream that have come in a second, of late."""

    time_left: float | None = None
    """Seconds until every block has come once; None while that is not known."""

    phase: ReceivingPhase = "bulk"
    """What this end does, as far as the stream tells."""

    same_bytes: int = 0
    """Bytes that the targets held already, as the source has found by comparing; zeros count, too."""

    saved_by_compression: int = 0
    """Bytes by which payloads that were compressed were shorter on the wire."""
