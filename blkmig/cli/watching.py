# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of ``send`` and ``receive`` by which a migration is watched: metrics, and a report at its end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .. import diskmap, errors, hanging, migration, ownfile, params, sources, stats, threads, units
from ..channel import uri as address
from ..disk import identity
from ..migration import displays, endpoints, streamfile
from . import arguments, live, notify, output, signals

if TYPE_CHECKING:
    from .. import report

Direction = Literal["outgoing", "incoming"]
Migration = migration.OutgoingMigration | migration.IncomingMigration
Observer = Callable[[stats.Event], None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--metrics", type=arguments.word, metavar="FILE", help="write metrics in OpenMetrics to FILE, "
                        "once a second and at the end, as node_exporter's textfile collector reads them: FILE.prom in "
                        "its folder (needs blkmig[metrics])")  # fmt: skip
    parser.add_argument("--metrics-listen", type=arguments.word, metavar="[ADDRESS]:PORT", help="serve the same "
                        "metrics over HTTP; without ADDRESS to this machine only (needs blkmig[metrics])")  # fmt: skip
    parser.add_argument("--report", type=arguments.word, metavar="FILE", help="write a page about the migration to "
                        "FILE.html when it has ended, well or not, with charts, the pause, and a map of each disk; "
                        "it needs no network to be read")  # fmt: skip
    parser.add_argument("--log-json", type=arguments.word, metavar="FILE", help="append all that happens to FILE, as "
                        "--progress=json says it, but how far it is only once a second")  # fmt: skip


CLOSE_SECONDS = 3.0
"""How long one who watches may take for the last words, where the migration's thread hangs."""

OWN_FILES = ("log_json", "metrics", "report")
"""Options that name a file which the command writes."""


def check(args: argparse.Namespace, disks: Iterable[tuple[str | None, str]], *, writing: bool) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` if a migration is to be watched, and there is none, or if a file for
    people or monitoring is also one of the disks, or the stream.

    `disks` are names and texts of the disks; `writing` says whether the stream is written.
    """
    if getattr(args, "dry_run", None) is not None and (args.metrics or args.metrics_listen or args.report):
        why = "--dry-run sends nothing, so there is nothing to watch: leave --metrics and --report out"
        raise errors.ParameterError(why)
    used: list[tuple[str, identity.KnownFile]] = []
    with contextlib.suppress(OSError, errors.ParameterError):  # whoever opens it says why it cannot be
        stream = streamfile.known_file(args.uri, writing=writing)
        used += [] if stream is None else [("the stream", stream)]
    for name, text in disks:
        with contextlib.suppress(OSError, errors.ParameterError):
            used += [(f"disk {name or text!r}", file) for file in sources.files_named(text)]
    for label, path in _own_files(args, sends=writing):
        with contextlib.suppress(OSError):
            used.append((f"{label} {path!r}", identity.KnownFile.of(path)))
            endpoints.check_is_free(*used[-1])
            _check_is_apart(*used[-1], used[:-1])


def _own_files(args: argparse.Namespace, *, sends: bool) -> list[tuple[str, str]]:
    """Return the files that the command writes for people or monitoring: the option, and the path."""
    options = OWN_FILES if sends else (*OWN_FILES, "token_file")  # which a sender reads
    paths = ((f"--{option.replace('_', '-')}", getattr(args, option)) for option in options)
    return [(option, path) for option, path in paths if path is not None]


def _check_is_apart(label: str, own: identity.KnownFile, used: Iterable[tuple[str, identity.KnownFile]]) -> None:
    for other, file in used:
        if identity.is_same(own, file):
            raise errors.ParameterError(f"{label} and {other} are the same file: give each a file of its own")


class Watch:
    """Who watches one migration."""

    def __init__(self) -> None:
        self._observers: list[Observer] = []
        self._followers: list[Callable[[Any], None]] = []
        self._closing: list[Callable[[errors.MigrationError | None], object]] = []
        self._url: str | None = None

    @contextlib.contextmanager
    def ending(self, of: Migration) -> Iterator[None]:
        """Have a signal, or a limit, end the migration in the body of a ``with``, also where its thread hangs."""
        heard, abandon = signals.current(), of.abandon
        if isinstance(of, migration.OutgoingMigration):
            of.when_limit_reached = heard.overdue.wish
        else:
            heard.overdue.is_in_doubt = lambda: of.is_in_doubt

        def abandon_and_close(hung: hanging.Call) -> errors.MigrationError | None:
            error = abandon(hung)
            for close in self._closing:
                threads.in_time(functools.partial(close, error), CLOSE_SECONDS)
            return error

        heard.overdue.abandon = abandon_and_close
        with heard.cancelling(of.cancel):
            yield

    def add(self, observer: Observer, follow: Callable[[Any], None]) -> None:
        """Have `observer` told of events, and `follow` of the migration."""
        self._observers.append(observer)
        self._followers.append(follow)

    def joined(self, report: Observer | None) -> Observer | None:
        """Return the function that tells all of them, and `report`; None if nobody wants to know."""
        if isinstance(report, live.LiveReporter):
            self._followers.append(lambda of: report.follow(of.stats, _maps_of(of)[0]))
        observers = [*self._observers, *([] if report is None else [report])]
        if len(observers) < 2:
            return observers[0] if observers else None

        def tell_all(event: stats.Event) -> None:
            for observer in observers:
                observer(event)

        return tell_all

    def begin(self, of: Migration) -> None:
        """Tell all of them which migration it is, and people where the metrics are."""
        for follow in self._followers:
            follow(of)
        if self._url is not None:
            output.print_note(f"metrics at {self._url}")

    @contextlib.contextmanager
    def exporting(self, args: argparse.Namespace, direction: Direction) -> Iterator[None]:
        """Export metrics as the options say, and log stalls where that is of use."""
        is_exported = args.metrics is not None or args.metrics_listen is not None
        if not is_exported and output.log is None:
            yield
            return
        from .. import metrics  # here, so that commands which do not need it start sooner

        collector = metrics.MigrationMetrics(label_of(args.uri), direction=direction)
        self.add(collector, lambda of: collector.follow(of.stats))
        if not is_exported:
            with metrics.StallWatch(collector):
                yield
            return
        with contextlib.ExitStack() as stack:
            exported = metrics.exported(collector, file=args.metrics, listen=args.metrics_listen)
            self._url = stack.enter_context(exported)
            self._closing.append(lambda _: stack.close())
            yield

    def trace(self, args: argparse.Namespace, direction: Direction) -> None:
        """Make spans, where something has set a provider of tracers: opentelemetry-instrument, for instance."""
        if "opentelemetry.trace" in sys.modules:
            from .. import metrics

            spans = metrics.MigrationSpans(label_of(args.uri), direction=direction)
            if spans.is_wanted:
                self.add(spans, lambda of: spans.follow(of.stats))

    @contextlib.contextmanager
    def reporting(self, args: argparse.Namespace, direction: Direction) -> Iterator[None]:
        """Write a report at the end, however it ends, if the options say so."""
        if args.report is None:
            yield
            return
        from .. import report

        _check_report(args.report, report.MARK)
        recorder = report.Recorder(label_of(args.uri), direction=direction)

        def follow(of: Migration) -> None:
            recorder.settings = _plain(of.parameters)
            recorder.follow(of.stats, *_maps_of(of))

        def write(error: BaseException | None) -> None:
            if error is not None:
                recorder.ended(error, str(error).replace(args.uri, recorder.name))
            _write_report(args.report, recorder)

        self.add(recorder, follow)
        self._closing.append(write)
        try:
            yield
        except BaseException as error:
            write(error)
            raise
        write(None)


def _maps_of(
    of: Migration,
) -> tuple[Mapping[str, diskmap.DiskMap], list[stats.RoundStatistics] | None]:
    """Return where the maps of the disks will be, and the rounds that a receiver sees."""
    if isinstance(of, migration.OutgoingMigration):
        return of.keep_maps(), None
    kept = of.keep_maps()
    return kept.maps, kept.rounds


def _check_report(path: str, mark: bytes) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` if a report cannot be there, or would replace something."""
    if not pathlib.Path(path).parent.is_dir():
        raise errors.ParameterError(f"--report {path!r}: there is no such folder")
    try:
        ownfile.check(path, mark)
    except OSError as error:
        raise errors.ParameterError(f"--report {path!r}: {error.strerror or error}") from error


def _write_report(path: str, recorder: report.Recorder) -> None:
    """Write the report. Whatever goes wrong with a picture, the migration has ended as it has: that is what is told."""
    from .. import report

    try:
        ownfile.replace(path, report.page(recorder), report.MARK)
    except Exception as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        output.print_note(f"the report cannot be written to {path!r}: {why}")


def _plain(parameters: params.MigrationParameters | params.IncomingParameters) -> dict[str, object]:
    """Return the parameters that a page may show: numbers, choices and yes or no."""
    found = {field.name: getattr(parameters, field.name) for field in dataclasses.fields(parameters)}
    if found.get("max_bandwidth"):
        found["max_bandwidth"] = units.format_rate(found["max_bandwidth"])
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str) and value != ""}


@contextlib.contextmanager
def watching(args: argparse.Namespace, direction: Direction) -> Iterator[Watch]:
    """Yield who watches the migration that the command makes; what is raised in the body has ended it."""
    watch = Watch()
    notifier = notify.Notifier()
    if notifier.is_wanted:
        watch.add(notifier, lambda _: notifier.tell(READY="1") if direction == "incoming" else None)
    if output.log is not None:
        watch.add(output.log_event, lambda _: None)
    watch.trace(args, direction)
    # Known in the body: a disk of a folder, or of a QEMU, is met later.
    own = displays.owning(_own_files(args, sends=direction == "outgoing"))
    with own, watch.exporting(args, direction), watch.reporting(args, direction):
        yield watch


def label_of(uri: str) -> str:
    """Return what a migration is called: its address, without what may be secret in a command."""
    try:
        parsed = address.parse_uri(uri)
    except errors.ParameterError:
        return uri.partition(":")[0]
    return "exec" if isinstance(parsed, address.ExecAddress) else str(parsed)
