# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of an incoming migration: its statistics, and what the caller is told of them while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import block, channel, stats
from . import arrivals, outlook

if TYPE_CHECKING:
    from . import figures

PROGRESS_SECONDS = 0.1


class IncomingFigures:
    """The figures of what is loaded, from `load` on. All of it belongs to the thread that loads."""

    def __init__(self, on_progress: figures.OnProgress | None, clock: Callable[[], float]) -> None:
        # Set here, then read-only.
        self.stats = stats.IncomingStatistics()
        self._on_progress = on_progress
        self._clock = clock
        # Of the present loading.
        self._block: block.BlockLoadHandlers
        self._f: channel.InputQEMUFile | None = None
        self._before = 0  # bytes that came on links that were lost
        self._started = 0.0
        self._last_report = 0.0
        self._rate = outlook.Rate()
        self._phase: stats.ReceivingPhase = "bulk"
        self._arrivals: arrivals.Arrivals | None = None
        self._has_told_complete = self._is_postponing = False
        self._postponed: Exception | None = None

    def load(self, handlers: block.BlockLoadHandlers) -> None:
        """Count from now on what `handlers` load."""
        self._block = handlers
        self._block.on_progress = self._report if self._on_progress is not None else None

    def keep_maps(self) -> arrivals.Arrivals:
        """Return where the maps of the disks will be, by name, as they come, and the rounds; call it before `run`."""
        self._arrivals = self._arrivals or arrivals.Arrivals(self._clock, self._position)
        return self._arrivals

    def watched(self, name: str, device: block.BlkLoadDevice) -> block.BlkLoadDevice:
        """Draw a map of a disk, if anybody wants any; return `device`."""
        if self._arrivals is not None:
            self._arrivals.watch(name, device)
        return device

    def begin(self, f: channel.InputQEMUFile) -> None:
        """Count from now on what comes in `f`."""
        self._f, self._started = f, self._clock()

    def go_on(self, f: channel.InputQEMUFile) -> None:
        """Count what comes in `f`, too: the link before it was lost."""
        assert self._f is not None
        self._before += self._f.position
        self._f = f
        self.stats.reconnects += 1

    def begin_anew(self, f: channel.InputQEMUFile) -> None:
        """Forget the disks, which come from the beginning in `f`; what has come of them before was sent all the same.
        """
        self.go_on(f)
        self.stats.disks.clear()
        self.stats.notes.clear()
        self.stats.percent, self._phase = 0, "bulk"
        if self._arrivals is not None:
            self._arrivals.begin_anew()

    def all_has_come(self) -> None:
        """Tell the caller that the stream is at its end; what follows is to bring it to stable storage."""
        self._close_round()
        self._phase = "storing"
        self._report(at_once=True)

    def _close_round(self) -> None:
        if self._arrivals is not None and self._phase != "storing":
            self._arrivals.close_round()

    def _position(self) -> int:
        assert self._f is not None
        return self._before + self._f.position

    def set_totals(self) -> None:
        """Copy the counters to where others read them."""
        self._close_round()
        self.stats.transferred, self.stats.format = self._position(), self._block.format
        self.stats.percent = self._block.percent
        self.stats.total_time = self._clock() - self._started

    def _report(self, *, at_once: bool = False) -> None:
        """Tell the caller how far it is: at once, or at most ten times a second."""
        now = self._clock()
        if self._on_progress is None or (now - self._last_report < PROGRESS_SECONDS and not at_once):
            return
        self._last_report = now
        self.set_totals()
        self._rate.add(now, self.stats.transferred)
        disks, percent, elapsed = self.stats.disks.values(), self.stats.percent, now - self._started
        self._tell(
            stats.Received(
                elapsed=elapsed,
                transferred=self.stats.transferred,
                blocks=sum(disk.blocks for disk in disks),
                zero_blocks=sum(disk.zero_blocks for disk in disks),
                percent=percent,
                bandwidth=self._rate.per_second,
                time_left=outlook.time_to_come(elapsed, percent),
                same_bytes=sum(disk.same_bytes for disk in disks),
                saved_by_compression=sum(disk.saved_by_compression for disk in disks),
                phase="dirty" if self._phase == "bulk" and percent == 100 else self._phase,
            )
        )

    def set_status(self, status: stats.Status) -> None:
        """Enter a state and tell the caller."""
        self.stats.status, self.stats.format = status, self._block.format
        if self._on_progress is not None:
            self._tell(stats.StatusChanged(self._elapsed(), status))

    def taken(self, *, is_usable: bool) -> None:
        """Take note that the disks are this host's: what the caller's function raises from now on decides nothing, and
        waits for `raise_postponed`. If others can use them, it is told that they are complete."""
        self._is_postponing = True
        if is_usable:
            self.complete()

    def complete(self) -> None:
        """Tell the caller that all disks are complete here; once."""
        if self._on_progress is not None and not self._has_told_complete:
            self._has_told_complete = True
            self._tell(stats.DisksComplete(self._elapsed()))

    def raise_postponed(self) -> None:
        """Raise what the caller's function has raised since the disks are this host's."""
        if self._postponed is not None:
            raise self._postponed

    def _elapsed(self) -> float:
        return self._clock() - self._started if self._started else 0.0

    def _tell(self, event: stats.Event) -> None:
        assert self._on_progress is not None
        try:
            self._on_progress(event)
        except Exception as error:
            if not self._is_postponing:
                raise
            self._postponed = self._postponed or error
