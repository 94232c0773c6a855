# SPDX-License-Identifier: GPL-2.0-or-later
"""Spans of OpenTelemetry: a migration, its phases, its rounds and its pause, for programs that trace what they do.

::

    migration ─┬─ setup
               ├─ bulk
               ├─ dirty ─┬─ round
               │         └─ round ...
               └─ pause              event: all is on its way

Nothing is imported here. Whoever has set a provider of tracers has imported the library; without one there are no
spans, and an event costs one comparison.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Literal

from .. import errors, logs, stats, texts

logger = logs.Logger(__name__)

MOST_ROUNDS = 100
"""Of more rounds than that there are no spans; the migration's span says how many there were."""

NS = 1_000_000_000

Statistics = stats.OutgoingStatistics | stats.IncomingStatistics


def tracer() -> Any:
    """Return the tracer of the provider that the program has set; None without one."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # what is there while nobody has set any
        return None
    return provider.get_tracer("blkmig")


class MigrationSpans:
    """The `on_progress` of one migration that is traced; it does nothing where no provider is set.

    `migration` is its name; say no secret in it. Its span belongs to the one that is current when this is made. It ends
    with the migration. Whatever goes wrong with spans is a warning, once, and no error.
    """

    def __init__(
        self,
        migration: str,
        *,
        direction: Literal["outgoing", "incoming"] = "outgoing",
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = tracer()
        self._clock = clock
        self._statistics: Statistics | None = None
        self._status: stats.Status = "none"
        self._phase = ""
        self._rounds = 0
        self._root: Any = None
        self._span: Any = None
        if self._tracer is not None:
            about = {"blkmig.migration": texts.printable(migration), "blkmig.direction": direction}
            self._parent = sys.modules["opentelemetry.context"].get_current()
            self._about = about

    @property
    def is_wanted(self) -> bool:
        """Whether somebody traces."""
        return self._tracer is not None

    def follow(self, statistics: Statistics) -> None:
        """Read figures that no event has from the statistics of the migration."""
        self._statistics = statistics

    def __call__(self, event: stats.Event) -> None:
        """Take note of an event."""
        if self._tracer is None:
            return
        try:
            self._take(event)
        except Exception as error:
            self._tracer = None
            logger.warning("the migration is traced no more: %s: %s", type(error).__name__, error)

    def _take(self, event: stats.Event) -> None:
        if self._root is None:
            self._root = self._tracer.start_span(
                "blkmig.migration", context=self._parent, attributes=self._about, start_time=self._clock()
            )
        match event:
            case stats.StatusChanged(status=status):
                self._change(status)
            case stats.Progressed() | stats.Received():
                self._progressed(event)
            case stats.RoundEnded():
                self._round_ended(event)
            case stats.NotConverging():
                rates = {"blkmig.dirty_rate": event.dirty_rate, "blkmig.bandwidth": event.bandwidth}
                self._root.add_event("not converging", {**rates, "blkmig.pending_bytes": event.pending})
            case stats.Reconnecting():
                self._root.add_event("reconnecting")

    def _change(self, status: stats.Status) -> None:
        self._status = status
        if status in ("setup", "reconnecting"):
            self._enter(status)
        elif status == "device":
            self._enter("pause")
        elif status in ("completed", "failed", "cancelled"):
            self._end(status, sys.exc_info()[1])
        elif self._phase != "dirty":
            self._enter("")  # the next report says which

    def _progressed(self, event: stats.Progressed | stats.Received) -> None:
        if self._phase == "pause" and event.phase == "waiting":
            self._span.add_event("all is on its way")
        elif self._status == "active" and event.phase != self._phase:
            self._enter(event.phase)

    def _round_ended(self, event: stats.RoundEnded) -> None:
        done = event.round
        if not done.number or self._phase == "pause":
            return
        self._enter("dirty")
        self._rounds += 1
        if self._rounds <= MOST_ROUNDS:
            now = self._clock()
            about = {"blkmig.round": done.number, "blkmig.dirty_bytes": done.dirty_bytes,
                     "blkmig.transferred_bytes": done.transferred, "blkmig.redirtied_bytes": done.redirtied_bytes,
                     "blkmig.pending_bytes": event.pending}  # fmt: skip
            start = now - round(done.seconds * NS)
            span = self._child("round", self._span, start, about)
            span.end(now)

    def _child(self, name: str, parent: Any, start: int, about: dict[str, Any]) -> Any:
        context = sys.modules["opentelemetry.trace"].set_span_in_context(parent)
        return self._tracer.start_span(f"blkmig.{name}", context=context, attributes=about, start_time=start)

    def _enter(self, phase: str) -> None:
        """End the span of the present phase, with what has moved by now, and begin that of the next; "" is none."""
        if phase == self._phase:
            return
        now, self._phase = self._clock(), phase
        if self._span is not None:
            self._span.set_attribute("blkmig.transferred_bytes", self._transferred())
            self._span.end(now)
        self._span = self._child(phase, self._root, now, {}) if phase else None

    def _transferred(self) -> int:
        return 0 if self._statistics is None else self._statistics.transferred

    def _end(self, status: stats.Status, error: BaseException | None) -> None:
        self._enter("")
        root, found = self._root, self._statistics
        root.set_attribute("blkmig.status", status)
        root.set_attribute("blkmig.transferred_bytes", self._transferred())
        root.set_attribute("blkmig.rounds", self._rounds)
        if found is not None:
            sizes = [disk.size or 0 for disk in found.disks.values()]
            root.set_attribute("blkmig.disks", len(sizes))
            root.set_attribute("blkmig.disk_bytes", sum(sizes))
        if isinstance(found, stats.OutgoingStatistics) and found.downtime is not None:
            root.set_attribute("blkmig.downtime_seconds", found.downtime)
        codes = sys.modules["opentelemetry.trace"].StatusCode
        if status == "completed":
            root.set_status(codes.OK)
        else:
            kind = type(error or errors.Cancelled(status)).__name__
            root.set_attribute("error.type", kind)
            root.set_status(codes.ERROR, kind)
        root.end(self._clock())
        self._tracer = None
