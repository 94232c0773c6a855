# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress as a bar, as lines, or as JSON."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from .. import stats, units
from . import output

PLAIN_SECONDS = 1.0
"""Plain progress lines come this far apart."""


class Reporter(Protocol):
    """What shows the events of a migration."""

    def __call__(self, event: stats.Event) -> None:
        """Show one event."""


@contextlib.contextmanager
def reporter(kind: str) -> Iterator[Callable[[stats.Event], None] | None]:
    """Yield what shows progress on stderr: "bar", "plain", "json", "none", or "auto" (a bar on a terminal)."""
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "plain"
    if kind == "none":
        yield None
    elif kind == "json":
        yield lambda event: output.stderr.record(output.to_json(event), patience=0.0)
    elif kind == "bar":
        with BarReporter() as bar:
            yield bar
    else:
        yield PlainReporter()


class PlainReporter:
    """Prints a line a second, and one for each round."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, event: stats.Event) -> None:
        """Print `event`, if it is time for a line."""
        if isinstance(event, stats.Progressed | stats.Received):
            if event.elapsed - self._last < PLAIN_SECONDS:
                return
            self._last = event.elapsed
        text = describe(event)
        if text:
            output.stderr.line(text, patience=0.0)


def describe(event: stats.Event) -> str:
    """Return `event` as a line for a person, "" for one that is not worth a line."""
    if isinstance(event, stats.Progressed):
        return (
            f"{event.phase} {event.percent:5.1f} %, {units.format_size(event.remaining)} pending, "
            f"{units.format_rate(event.bandwidth)}"
        )
    if isinstance(event, stats.RoundEnded):
        return describe_round(event)
    if isinstance(event, stats.Received):
        return f"received {units.format_size(event.transferred)}, {event.blocks} blocks, {event.percent} %"
    return ""


def describe_round(event: stats.RoundEnded) -> str:
    """Return a line about a round."""
    ended = event.round
    name = "bulk   " if not ended.number else f"round {ended.number:<2}"
    return (
        f"{name}  {units.format_size(ended.transferred):>10} in {units.format_duration(ended.seconds):>7}, "
        f"{units.format_rate(ended.bandwidth):>12}; {units.format_size(event.pending):>10} dirty again, "
        f"{units.format_size(event.threshold_size)} fit the downtime limit"
    )


BAR_COLUMNS = 30


class BarReporter:
    """A bar that is redrawn in place, with the rounds above it."""

    def __enter__(self) -> BarReporter:
        """Start drawing."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop drawing."""
        output.stderr.status("")

    def __call__(self, event: stats.Event) -> None:
        """Redraw."""
        if isinstance(event, stats.Progressed | stats.Received):
            done = round(event.percent * BAR_COLUMNS / 100)
            text = f"[{'#' * done:<{BAR_COLUMNS}}] {describe(event)}"
            output.stderr.status(text[: (output.stderr.columns() or len(text) + 1) - 1])
        elif isinstance(event, stats.RoundEnded):
            output.stderr.line(describe_round(event), patience=0.0)
