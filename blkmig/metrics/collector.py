# SPDX-License-Identifier: GPL-2.0-or-later
"""The collector of one migration: what it does, how far it is, and how it ended.

The migration's thread leaves its last events here, each by one assignment. Whoever collects reads them, and the
statistics, from any thread. All metrics are gauges, so a file of them is the same in OpenMetrics and in the older text
format of Prometheus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from .. import errors, stats, texts
from . import library

PREFIX = "blkmig_migration_"
STALL_SECONDS = 9.0
"""A migration that has something to move, and moves no byte for so long, is stalled. Whoever looks once a second tells
it within ten."""

PHASES = (
    *("none", "setup", "bulk", "dirty", "switchover", "waiting", "storing"),
    *("reconnecting", "completed", "failed", "cancelled"),
)
MOVING = ("bulk", "dirty", "switchover")
"""The phases in which bytes are due."""

Statistics = stats.OutgoingStatistics | stats.IncomingStatistics
Sample = tuple[str, str, float | None, dict[str, str]]
"""A name, what it means, the value, None for none, and labels of its own."""


class MigrationMetrics:
    """A collector for ``prometheus_client``, and the `on_progress` of one migration.

    `migration` is its name, which every metric has as a label; say no secret in it. `direction` is the other label.
    Nothing here blocks, or starts a thread.
    """

    def __init__(
        self,
        migration: str,
        *,
        direction: Literal["outgoing", "incoming"] = "outgoing",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Set here, then read-only.
        self.labels = {"migration": texts.printable(migration), "direction": direction}
        self._clock = clock
        # Written by the migration's thread alone, each by one assignment.
        self._progress: stats.Progressed | stats.Received | None = None
        self._status: stats.Status = "none"
        self._rounds = 0
        self._is_converging = True
        self._started: float | None = None
        self._ended: float | None = None
        # The same by `clock`: the time of day may be set meanwhile.
        self._began: float | None = None
        self._over: float | None = None
        self._statistics: Statistics | None = None
        self._error: BaseException | None = None
        # The bytes that had moved at the last look, and when they did. Any thread; the last one wins.
        self._moved = (0, clock())

    # -- what the migration says -------------------------------------------------------------------------------------

    def __call__(self, event: stats.Event) -> None:
        """Take note of an event."""
        match event:
            case stats.Progressed() | stats.Received():
                self._progress = event
            case stats.RoundEnded():
                self._rounds = event.round.number
            case stats.NotConverging():
                self._is_converging = False
            case stats.StatusChanged(status=status):
                self._change(status)
        self._look()

    def _change(self, status: stats.Status) -> None:
        if self._began is None:
            self._started, self._began = time.time(), self._clock()
        if status in ("completed", "failed", "cancelled"):
            self._ended, self._over = time.time(), self._clock()
        if status == "device":
            self._is_converging = True
        self._status = status
        self._moved = (self._moved[0], self._clock())

    def follow(self, statistics: Statistics) -> None:
        """Read figures that no event has from the statistics of the migration: disks, downtime."""
        self._statistics = statistics

    def ended(self, error: BaseException | None) -> None:
        """Take note of what ended the migration; None: nothing did."""
        self._error = error
        if error is not None and self._status not in ("failed", "cancelled"):
            cancelled = isinstance(error, errors.Cancelled) or not isinstance(error, Exception)
            self._change("cancelled" if cancelled else "failed")

    # -- what is asked -----------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """Return what the migration does: one of `PHASES`."""
        if self._status in ("active", "device"):
            phase = "bulk" if self._progress is None else self._progress.phase
            return "switchover" if self._status == "device" and phase != "waiting" else phase
        return "cancelled" if self._status == "cancelling" else self._status

    def idle_seconds(self) -> float:
        """Return for how long no byte has moved; 0 where none is due."""
        self._look()
        return self._clock() - self._moved[1] if self._is_due() else 0.0

    def _is_due(self) -> bool:
        progress = self._progress
        has_all_gone = isinstance(progress, stats.Progressed) and progress.phase == "dirty" and not progress.remaining
        return self.phase in MOVING and not has_all_gone

    def _look(self) -> None:
        transferred = self._transferred()
        if transferred != self._moved[0]:
            self._moved = (transferred, self._clock())

    def _transferred(self) -> int:
        told = 0 if self._progress is None else self._progress.transferred
        return told if self._statistics is None else max(told, self._statistics.transferred)

    def collect(self) -> Iterator[Any]:
        """Yield the metrics, for a registry of ``prometheus_client``. From any thread."""
        gauge = library.load("core").GaugeMetricFamily
        families: dict[str, Any] = {}
        for name, meaning, value, labels in self._samples():
            if value is None:
                continue
            labels = self.labels | labels
            if name not in families:
                families[name] = gauge(PREFIX + name, meaning, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)
        yield from families.values()

    def _samples(self) -> Iterator[Sample]:
        yield from self._state()
        yield from self._figures()
        yield from self._disks()

    def _state(self) -> Iterator[Sample]:
        present, error = self.phase, self._error
        for phase in PHASES:
            yield "phase", "1 for what the migration does now, 0 for all else.", phase == present, {"phase": phase}
        yield "succeeded", "1 if the migration is done.", present == "completed", {}
        reason = type(error).__name__ if error is not None and present == "failed" else ""
        yield "failed", "1 if the migration has failed; the reason is a kind of error.", present == "failed", {
            "reason": reason
        }  # fmt: skip
        yield "start_time_seconds", "When the migration began, in seconds since 1970.", self._started, {}
        yield "end_time_seconds", "When the migration ended, in seconds since 1970.", self._ended, {}
        if self._began is not None:
            elapsed = (self._clock() if self._over is None else self._over) - self._began
            yield "elapsed_seconds", "Seconds since the migration began.", elapsed, {}
        idle = self.idle_seconds()
        yield "idle_seconds", "Seconds in which no byte has moved although some were due.", idle, {}
        yield "stalled", "1 if no byte has moved for 9 s although some were due.", idle >= STALL_SECONDS, {}
        yield "not_converging", "1 if rounds leave as much as those before.", not self._is_converging, {}

    def _figures(self) -> Iterator[Sample]:
        yield "data_processed_bytes", "Bytes that have moved on the wire.", self._transferred(), {}
        yield "rounds", "Dirty rounds that have ended.", self._rounds, {}
        progress = self._progress
        if progress is not None:
            rate = 0 if self._ended else progress.bandwidth
            yield "transfer_rate_bytes", "Bytes per second that have moved of late.", rate, {}
        if isinstance(progress, stats.Progressed):
            left = 0 if self._status == "completed" else progress.remaining
            yield "data_remaining_bytes", "Bytes of the disks that are left to be sent, without holes.", left, {}
            yield "data_total_bytes", "Size of all disks, holes included.", progress.total, {}
            yield "dirty_rate_bytes", "Bytes per second that the writers dirty.", progress.dirty_rate, {}
            expected = progress.expected_downtime
            yield "expected_downtime_seconds", "Seconds of the pause if it began now.", expected, {}
        if isinstance(self._statistics, stats.OutgoingStatistics):
            limit, downtime = self._statistics.downtime_limit, self._statistics.downtime
            yield "downtime_limit_seconds", "Seconds that the writers may be held.", limit, {}
            yield "downtime_seconds", "Seconds that the writers were held.", downtime, {}
        if isinstance(self._statistics, stats.IncomingStatistics):
            yield from self._incoming_totals(self._statistics)

    def _incoming_totals(self, found: stats.IncomingStatistics) -> Iterator[Sample]:
        sizes = [disk.size for disk in list(found.disks.values())]
        total = None if None in sizes or not sizes else sum(size or 0 for size in sizes)
        left = None if total is None else total * (100 - found.percent) // 100
        yield "data_total_bytes", "Size of all disks, holes included.", total, {}
        yield "data_remaining_bytes", "Bytes of the disks that have not come yet, holes included.", left, {}

    def _disks(self) -> Iterator[Sample]:
        disks: Iterable[stats.SentDiskStatistics | stats.DiskStatistics] = ()
        if self._statistics is not None:
            disks = list(self._statistics.disks.values())  # at once: the migration may add to it
        for disk in disks:
            label = {"disk": texts.printable(disk.name)}
            yield "disk_size_bytes", "Size of the disk.", disk.size, label
            yield "disk_blocks", "Blocks of the disk that have moved, those of zeros included.", disk.blocks, label
            yield "disk_resent_blocks", "Blocks of the disk that have moved again.", disk.resent_blocks, label
            yield "disk_packs", "Packs with parts of the disk's blocks that have moved.", disk.packs, label
            if isinstance(disk, stats.SentDiskStatistics):
                left = disk.size - disk.passed_bytes + disk.dirty_bytes
                yield "disk_remaining_bytes", "Bytes that are left of the disk, holes included.", left, label
