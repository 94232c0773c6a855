# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of ``send`` and ``receive`` by which a migration is watched: metrics, and a report at its end."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from .. import errors, stats
from ..channel import uri as address
from . import arguments, output

Direction = Literal["outgoing", "incoming"]
Observer = Callable[[stats.Event], None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--metrics", type=arguments.word, metavar="FILE", help="write metrics in OpenMetrics to FILE, "
                        "once a second and at the end, as node_exporter's textfile collector reads them: FILE.prom in "
                        "its folder (needs blkmig[metrics])")  # fmt: skip
    parser.add_argument("--metrics-listen", type=arguments.word, metavar="[ADDRESS]:PORT", help="serve the same "
                        "metrics over HTTP; without ADDRESS to this machine only (needs blkmig[metrics])")  # fmt: skip


def check(args: argparse.Namespace, *, is_dry_run: bool) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` if a migration is to be watched, and there is none."""
    if is_dry_run and (args.metrics or args.metrics_listen):
        raise errors.ParameterError("--dry-run sends nothing, so there is nothing to watch: leave --metrics out")


class Watch:
    """Who watches one migration."""

    def __init__(self) -> None:
        self._observers: list[Observer] = []
        self._followers: list[Callable[[Any], None]] = []
        self._url: str | None = None

    def add(self, observer: Observer, follow: Callable[[Any], None]) -> None:
        """Have `observer` told of events, and `follow` of the statistics."""
        self._observers.append(observer)
        self._followers.append(follow)

    def joined(self, report: Observer | None) -> Observer | None:
        """Return the function that tells all of them, and `report`; None if nobody wants to know."""
        observers = [*self._observers, *([] if report is None else [report])]
        if len(observers) < 2:
            return observers[0] if observers else None

        def tell_all(event: stats.Event) -> None:
            for observer in observers:
                observer(event)

        return tell_all

    def begin(self, statistics: stats.OutgoingStatistics | stats.IncomingStatistics) -> None:
        """Tell all of them where the statistics are, and people where the metrics are."""
        for follow in self._followers:
            follow(statistics)
        if self._url is not None:
            output.print_note(f"metrics at {self._url}")

    @contextlib.contextmanager
    def exporting(self, args: argparse.Namespace, direction: Direction) -> Iterator[None]:
        """Export metrics as the options say."""
        if args.metrics is None and args.metrics_listen is None:
            yield
            return
        from .. import metrics  # here, so that commands which do not need it start sooner

        collector = metrics.MigrationMetrics(label_of(args.uri), direction=direction)
        self.add(collector, collector.follow)
        with metrics.exported(collector, file=args.metrics, listen=args.metrics_listen) as self._url:
            yield


@contextlib.contextmanager
def watching(args: argparse.Namespace, direction: Direction) -> Iterator[Watch]:
    """Yield who watches the migration that the command makes; what is raised in the body has ended it."""
    watch = Watch()
    with watch.exporting(args, direction):
        yield watch


def label_of(uri: str) -> str:
    """Return what a migration is called: its address, without what may be secret in a command."""
    try:
        parsed = address.parse_uri(uri)
    except errors.ParameterError:
        return uri.partition(":")[0]
    return "exec" if isinstance(parsed, address.ExecAddress) else str(parsed)
