# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress as a bar, as lines, or as JSON. It never waits for its reader: a line that does not fit is left out."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from .. import stats
from . import output, wording

LINE_SECONDS = 1.0
"""The least time between two lines; rounds that end within it share one line."""

BAR_COLUMNS = 24
WIDE_COLUMNS = 100
"""A terminal with at least so many columns has room for a bar beside the figures."""

Report = Callable[[stats.Event], None]


@contextlib.contextmanager
def reporter(kind: str) -> Iterator[Report | None]:
    """Yield a function that shows progress on stderr; None for the kind "none".

    The other kinds are "bar", "plain", "json", and "auto": a bar on a terminal, else plain lines.
    """
    if kind == "auto":
        kind = "bar" if _is_terminal() else "plain"
    if kind == "none":
        yield None
    elif kind == "json":
        yield lambda event: output.stderr.record(output.to_json(event), patience=0.0)
    elif kind == "bar":
        with BarReporter() as bar:
            yield bar
    else:
        yield PlainReporter()


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (ValueError, AttributeError):
        return False


class RoundLines:
    """Lines about rounds: one for each long round, and one for several short ones together."""

    def __init__(self) -> None:
        self._waiting: list[stats.RoundEnded] = []
        self._last = -LINE_SECONDS

    def show(self, event: stats.Event) -> None:
        """Show the rounds that have ended, if a line is due, and whether the migration does not converge."""
        columns = output.stderr.columns()
        if isinstance(event, stats.RoundEnded):
            self._waiting.append(event)
            if event.elapsed - self._last >= LINE_SECONDS or not event.round.number:
                self._flush(event.elapsed, columns)
        elif isinstance(event, stats.NotConverging):
            self._flush(event.elapsed, columns)
            output.stderr.line(wording.not_converging(event, columns), patience=0.0)
        elif isinstance(event, stats.StatusChanged) and event.status != "active":
            self._flush(event.elapsed, columns)

    def _flush(self, elapsed: float, columns: int | None) -> None:
        if self._waiting:
            output.stderr.line(wording.rounds(self._waiting, columns), patience=0.0)
            self._waiting.clear()
            self._last = elapsed


class PlainReporter:
    """Prints a line a second, and one for each long round and for each of the last phases."""

    def __init__(self) -> None:
        self._rounds = RoundLines()
        self._last = 0.0
        self._phase = ""

    def __call__(self, event: stats.Event) -> None:
        """Print `event`, if it is time for a line."""
        self._rounds.show(event)
        if not isinstance(event, stats.Progressed | stats.Received):
            return
        is_due = event.elapsed - self._last >= LINE_SECONDS
        is_at_the_end = event.phase in ("waiting", "storing") and event.phase != self._phase
        if is_due or is_at_the_end:
            self._last, self._phase = event.elapsed, event.phase
            output.stderr.line(describe(event, output.stderr.columns()), patience=0.0)


def describe(event: stats.Progressed | stats.Received, columns: int | None, *, elapsed: float | None = None) -> str:
    """Return a line about how far the migration is, from either end."""
    if isinstance(event, stats.Progressed):
        return wording.sending(event, columns, elapsed=elapsed)
    return wording.receiving(event, columns, elapsed=elapsed)


class BarReporter:
    """A line that is redrawn in place, with the rounds above it. A thread redraws it when no event comes."""

    def __init__(self) -> None:
        self._rounds = RoundLines()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._redraw, name="blkmig-progress", daemon=True)
        # The last event and when it came. One assignment sets both, so that the thread sees them together.
        self._last: tuple[stats.Progressed | stats.Received, float] | None = None

    def __enter__(self) -> Self:
        """Start drawing."""
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing, and clear the line."""
        self._ended.set()
        self._thread.join()
        output.stderr.status("")

    def __call__(self, event: stats.Event) -> None:
        """Draw `event`."""
        self._rounds.show(event)
        if isinstance(event, stats.Progressed | stats.Received):
            self._last = event, time.monotonic()
            self._draw(event, event.elapsed)
        elif isinstance(event, stats.StatusChanged) and event.status == "setup":
            output.stderr.status("setup")

    def _redraw(self) -> None:
        while not self._ended.wait(LINE_SECONDS):
            if self._last is not None:
                event, since = self._last
                self._draw(event, event.elapsed + time.monotonic() - since)

    def _draw(self, event: stats.Progressed | stats.Received, elapsed: float) -> None:
        # The last column stays free, because some terminals begin a new line after it.
        columns = (output.stderr.columns() or WIDE_COLUMNS) - 1
        bar = ""
        if columns + 1 >= WIDE_COLUMNS:
            done = round(min(event.percent, 100) * BAR_COLUMNS / 100)
            bar = f"[{'#' * done:<{BAR_COLUMNS}}] "
        output.stderr.status(bar + describe(event, columns - len(bar), elapsed=elapsed))
