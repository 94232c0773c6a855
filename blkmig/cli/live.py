# SPDX-License-Identifier: GPL-2.0-or-later
"""The live view: a thread that draws a migration on the terminal, and never stands in its way.

::

    migration thread   events ─► Seen            one assignment each, nothing that waits
    statistics, maps ──────────────┐
    drawing thread                 └─► Screen (into memory) ─► Display.frame (to the terminal, if it takes it)

A frame that the terminal has no room for is left out. Whatever goes wrong with drawing ends the drawing, with a note.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from .. import diskmap, stats
from ..migration import outlook
from . import output, view, wording

FRAME_SECONDS = 0.5
"""The time between two frames, at least."""

SHARE = 0.004
"""The part of a processor that drawing may take: after a frame that took long, the next one comes later."""

JOIN_SECONDS = 2.0
ROUNDS = view.ROUNDS


class LiveReporter:
    """Draws the events of one migration."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        ended: threading.Event | None = None,
    ) -> None:
        # Set here, then read-only.
        self.seen = view.Seen()
        self._clock = clock
        self._cpu = cpu
        self._ended = threading.Event() if ended is None else ended
        self._thread = threading.Thread(target=self._run, name="blkmig-live", daemon=True)
        self._is_started = False
        # The drawing thread only: the bytes that have moved of late.
        self._moved = outlook.Rate()

    def __enter__(self) -> Self:
        """Start drawing; where no thread can be had, nothing is drawn."""
        try:
            self._thread.start()
            self._is_started = True
        except RuntimeError:
            output.print_note("there is no thread for the live view")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing, and clear what was drawn."""
        self._ended.set()
        if self._is_started:
            self._thread.join(JOIN_SECONDS)
        output.stderr.frame([], [])

    # -- the migration's thread --------------------------------------------------------------------------------------

    def follow(
        self,
        statistics: stats.OutgoingStatistics | stats.IncomingStatistics,
        maps: Mapping[str, diskmap.DiskMap] | None = None,
    ) -> None:
        """Read the rest from the statistics of the migration, and from the maps of its disks."""
        self.seen.maps = {} if maps is None else maps
        self.seen.statistics = statistics

    def __call__(self, event: stats.Event) -> None:
        """Take note of an event."""
        seen = self.seen
        match event:
            case stats.Progressed() | stats.Received():
                seen.progress = event
            case stats.RoundEnded() if wording.is_told(event):
                seen.rounds = (*seen.rounds, event)[-ROUNDS:]
            case stats.NotConverging():
                seen.not_converging = event
            case stats.Reconnecting(why=why):
                seen.lost = why
            case stats.StatusChanged(status=status):
                seen.status_since = event.elapsed
                seen.status = status
                if status != "reconnecting":
                    seen.lost = ""
                if status == "device":
                    seen.not_converging = None
        seen.told = event.elapsed, self._clock()

    # -- the drawing thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            screen = view.Screen(getattr(sys.stderr, "encoding", None) or "ascii")
            pause = 0.0
            while not self._ended.wait(pause):
                before = self._cpu()
                self.draw(screen)
                pause = max(FRAME_SECONDS, (self._cpu() - before) / SHARE)
        except Exception as error:
            output.stderr.frame([], [])
            output.print_note(f"the live view has ended, the migration goes on: {type(error).__name__}: {error}")

    def draw(self, screen: view.Screen) -> None:
        """Draw one frame, if there is a terminal, and it is ours."""
        size, now = output.stderr.size(), self._clock()
        if size is None or output.stderr.is_in_background():
            return
        seen, (elapsed, told_at) = self.seen, self.seen.told
        if seen.statistics is not None:
            self._moved.add(now, seen.statistics.transferred)
        since = now - told_at if told_at else 0.0
        output.stderr.frame(*screen.lines(seen, size, elapsed=elapsed + since, sent=self._moved.per_second))
