# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report remembers of a migration while it runs: samples, pauses, and what was told.

Migration thread only, until the migration has ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Literal

from .. import diskmap, stats

MOST_SAMPLES = 1024
MOST_PAUSES = 100

Statistics = stats.OutgoingStatistics | stats.IncomingStatistics


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """How far a migration was at a moment; bytes since its begin, so that samples can be left out."""

    elapsed: float
    phase: str
    transferred: int
    left: int | None
    """Bytes that were still to be sent; None at the receiving end."""

    dirty: int
    """Bytes that were written since they were sent."""

    dirty_rate: float


class Samples:
    """Samples in equal steps: when there are too many, every other one goes, and the steps get twice as long."""

    def __init__(self, most: int = MOST_SAMPLES) -> None:
        self._most = most
        self._step = 0.0
        self.kept: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Keep a sample; one that comes too soon replaces the last one, so that the last one is always there."""
        if len(self.kept) > 1 and sample.elapsed - self.kept[-2].elapsed < self._step:
            self.kept[-1] = sample
            return
        self.kept.append(sample)
        if len(self.kept) > self._most:
            del self.kept[1:-1:2]
            self._step = 2 * (sample.elapsed - self.kept[0].elapsed) / self._most


@dataclasses.dataclass(slots=True)
class Pause:
    """A time in which the writers were held, in seconds since the migration began."""

    began: float
    waited: float | None = None
    """When everything was on its way, and the target was waited for."""

    ended: float | None = None
    is_given_up: bool = False


class Recorder:
    """The `on_progress` of one migration that gets a report.

    `name` is what the page calls the migration, and `settings` what it was asked to do; say no secret in them.
    """

    def __init__(
        self,
        name: str,
        *,
        direction: Literal["outgoing", "incoming"] = "outgoing",
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.name = name
        self.direction = direction
        self.settings = dict(settings or {})
        self.samples = Samples()
        self.pauses: list[Pause] = []
        self.not_converging: stats.NotConverging | None = None
        self.status: stats.Status = "none"
        self.began_at = time.time()
        self.elapsed = 0.0
        self.statistics: Statistics | None = None
        self.maps: Mapping[str, diskmap.DiskMap] = {}
        self._came: list[stats.RoundStatistics] = []
        self.error: BaseException | None = None
        self.reason = ""
        """What the page says of the error."""

    def follow(
        self,
        statistics: Statistics,
        maps: Mapping[str, diskmap.DiskMap] | None = None,
        rounds: list[stats.RoundStatistics] | None = None,
    ) -> None:
        """Read the rest from the statistics of the migration, from the maps of its disks, and at the receiving end from
        the rounds that it has seen."""
        self.statistics, self.maps = statistics, {} if maps is None else maps
        self._came = [] if rounds is None else rounds  # it is filled later

    def ended(self, error: BaseException | None, reason: str = "") -> None:
        """Take note of what ended the migration; `reason` is told instead of the error's own text."""
        self.error, self.reason = error, reason or str(error or "")

    def __call__(self, event: stats.Event) -> None:
        """Take note of an event."""
        self.elapsed = max(self.elapsed, event.elapsed)
        match event:
            case stats.StatusChanged(status=status):
                self._change(event.elapsed, status)
            case stats.NotConverging():
                self.not_converging = event
            case stats.Progressed():
                self._progressed(event)
            case stats.Received():
                self.samples.add(Sample(event.elapsed, event.phase, event.transferred, None, 0, 0.0))

    def _change(self, elapsed: float, status: stats.Status) -> None:
        if self.pauses and self.pauses[-1].ended is None and status != "cancelling":
            self.pauses[-1].ended = elapsed
            self.pauses[-1].is_given_up = status == "active"
        if status == "device":
            del self.pauses[: len(self.pauses) + 1 - MOST_PAUSES]
            self.pauses.append(Pause(elapsed))
        self.status = status

    def _progressed(self, event: stats.Progressed) -> None:
        if event.phase == "waiting" and self.pauses and self.pauses[-1].waited is None:
            self.pauses[-1].waited = event.elapsed
        dirty = 0
        if isinstance(self.statistics, stats.OutgoingStatistics) and event.phase != "waiting":
            dirty = sum(disk.dirty_bytes for disk in self.statistics.disks.values())
        self.samples.add(
            Sample(event.elapsed, event.phase, event.transferred, event.remaining, dirty, event.dirty_rate)
        )

    @property
    def rounds(self) -> list[stats.RoundStatistics]:
        """Return the passes over the disks; the receiving end knows what came in them, and nothing of the writers."""
        return self.statistics.rounds if isinstance(self.statistics, stats.OutgoingStatistics) else self._came

    def disks(self) -> list[Any]:
        """Return the figures of each disk."""
        return [] if self.statistics is None else list(self.statistics.disks.values())
