# SPDX-License-Identifier: GPL-2.0-or-later
"""What people and programs see: errors, results, progress as bars, lines or JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from .. import stats, units

PLAIN_SECONDS = 1.0
"""Plain progress lines come this far apart."""


def print_error(error: BaseException | str) -> None:
    """Say what went wrong, in one line."""
    print(f"blkmig: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"blkmig: {note}", file=sys.stderr)


def set_up_logging(*, verbose: bool) -> None:
    """Send the package's log to stderr: warnings, or with `verbose` everything."""
    logging.basicConfig(format="blkmig: %(message)s", level=logging.DEBUG if verbose else logging.WARNING)


def to_json(value: Any) -> Any:
    """Return statistics and events as what JSON can hold, the kind of an event included."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, stats.Event):
            record = {"event": type(value).__name__, **record}
        return record
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def print_json(value: Any, file: TextIO | None = None) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(to_json(value)), file=file or sys.stdout, flush=True)


def print_table(rows: list[tuple[str, str]], file: TextIO | None = None) -> None:
    """Print rows of two columns."""
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value}", file=file or sys.stdout)


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
        yield lambda event: print_json(event, sys.stderr)
    elif kind == "bar" and (bar := _make_bar()) is not None:
        with bar:
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
            print(text, file=sys.stderr, flush=True)


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


def _make_bar() -> BarReporter | None:
    """Return the bar, None where rich is not installed."""
    try:
        return BarReporter()
    except ImportError:
        return None


class BarReporter:
    """A bar that is redrawn in place, with the rounds above it."""

    def __init__(self) -> None:
        from rich import console, progress  # an extra, and slow to import

        self._progress = progress.Progress(
            progress.TextColumn("{task.description:<10}"),
            progress.BarColumn(),
            progress.TextColumn("{task.percentage:5.1f} %"),
            progress.TextColumn("{task.fields[detail]}"),
            console=console.Console(stderr=True),
        )
        self._task = self._progress.add_task("waiting", total=100, detail="")

    def __enter__(self) -> BarReporter:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop drawing and leave the last picture."""
        self._progress.stop()

    def __call__(self, event: stats.Event) -> None:
        """Redraw."""
        if isinstance(event, stats.Progressed):
            detail = f"{units.format_size(event.remaining)} pending  {units.format_rate(event.bandwidth)}"
            self._progress.update(self._task, completed=event.percent, description=event.phase, detail=detail)
        elif isinstance(event, stats.Received):
            detail = units.format_size(event.transferred)
            self._progress.update(self._task, completed=event.percent, description="receiving", detail=detail)
        elif isinstance(event, stats.RoundEnded):
            self._progress.console.print(describe_round(event), highlight=False)
        elif isinstance(event, stats.StatusChanged):
            completed = 100 if event.status == "completed" else None
            self._progress.update(self._task, description=event.status, completed=completed)
