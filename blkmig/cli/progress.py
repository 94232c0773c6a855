# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress as a live view, as a bar, as lines, or as JSON. It never waits for its reader: what does not fit is left
out."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from .. import errors, stats
from . import live, output, wording

LINE_SECONDS = 1.0
"""The least time between two lines; rounds that end within it share one line."""

BAR_COLUMNS = 24
WIDE_COLUMNS = 100
"""A terminal with at least so many columns has room for a bar beside the figures."""

Report = Callable[[stats.Event], None]


@contextlib.contextmanager
def reporter(kind: str) -> Iterator[Report | None]:
    """Yield a function that shows progress on stderr; None for the kind "none".

    The other kinds are "live", "bar", "plain", "json", and "auto": on a terminal the live view, or without its library
    a bar; else plain lines. Raises :class:`~blkmig.errors.ParameterError` for a live view that cannot be had.
    """
    if kind == "auto":
        kind = _best()
    if kind == "none":
        yield None
    elif kind == "json":
        yield output.tell_event
    elif kind == "live":
        _check_live()
        with output.stderr.unblocked(), live.LiveReporter() as view:
            yield view
    elif kind == "bar":
        with output.stderr.unblocked(), BarReporter() as bar:
            yield bar
    else:
        yield PlainReporter()


def _best() -> str:
    if not _is_terminal():
        return "plain"
    return "live" if _has_rich() else "bar"


def _check_live() -> None:
    if not _is_terminal():
        raise errors.ParameterError("--progress=live: standard error is no terminal that shows it; say plain or json")
    if not _has_rich():
        raise errors.ParameterError("--progress=live: the Python library rich is missing: pip install 'blkmig[live]'")


def _has_rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def _is_terminal() -> bool:
    """Return whether stderr is a terminal on which lines can be drawn again."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
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
            if not wording.is_told(event):
                return
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
        self._is_started = False
        # The last event and when it came. One assignment sets both, so that the thread sees them together.
        self._last: tuple[stats.Progressed | stats.Received, float] | None = None

    def __enter__(self) -> Self:
        """Start drawing; where no thread can be had, events alone draw."""
        with contextlib.suppress(RuntimeError):
            self._thread.start()
            self._is_started = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing, and clear the line."""
        self._ended.set()
        if self._is_started:
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
