# SPDX-License-Identifier: GPL-2.0-or-later
"""Spans of a migration, as an exporter gets them; none, and no import, where nobody traces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lab
import pytest
from opentelemetry import trace
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.trace import export
from opentelemetry.sdk.trace.export import in_memory_span_exporter

import blkmig
from blkmig import errors, stats
from blkmig.metrics import spans

MIB = lab.MIB


@pytest.fixture(scope="module")
def provider() -> sdk.TracerProvider:
    """Set a provider; a program can do that once."""
    made = sdk.TracerProvider()
    trace.set_tracer_provider(made)
    return made


@pytest.fixture
def exported(provider: sdk.TracerProvider) -> in_memory_span_exporter.InMemorySpanExporter:
    exporter = in_memory_span_exporter.InMemorySpanExporter()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    return exporter


def test_nobody_traces_without_a_provider() -> None:
    """In a process of its own: no module of the library is loaded, and an event changes nothing."""
    program = """
import sys
from blkmig import metrics, stats
found = metrics.MigrationSpans("m")
found(stats.StatusChanged(0.0, "setup"))
assert not found.is_wanted
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
import opentelemetry.trace
assert not metrics.MigrationSpans("m").is_wanted, "there is a library, and no provider"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(blkmig.__file__).parents[1])


def test_a_migration_of_both_ends(
    tmp_path: Path, provider: sdk.TracerProvider, exported: in_memory_span_exporter.InMemorySpanExporter
) -> None:
    disk = blkmig.MemoryBackend(bytearray(os.urandom(4 * MIB)), name="vda")
    with provider.get_tracer("test").start_as_current_span("nightly") as nightly:
        incoming = spans.MigrationSpans("m", direction="incoming")
        outgoing = spans.MigrationSpans("tcp:x:1")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"vda": tmp_path / "copy"}, on_progress=incoming)
    incoming.follow(receiver.migration.stats)
    with blkmig.outgoing([disk], receiver.uri, on_progress=outgoing) as migration:
        outgoing.follow(migration.stats)
        while not migration.threshold_size():
            migration.iterate()
        disk.pwrite(b"later", 3 * MIB)
        migration.run()
    receiver.result()
    found = exported.get_finished_spans()
    roots = {each.attributes["blkmig.direction"]: each for each in found if each.name == "blkmig.migration"}
    assert {*roots} == {"outgoing", "incoming"}
    for root in roots.values():
        assert root.parent is not None
        assert root.parent.span_id == nightly.get_span_context().span_id
        assert root.status.status_code is trace.StatusCode.OK
        children = [each for each in found if each.parent is not None and each.parent.span_id == root.context.span_id]
        names = [each.name for each in sorted(children, key=lambda each: each.start_time or 0)]
        assert names[0] == "blkmig.setup"
        assert (names[-1] == "blkmig.pause") == (root is roots["outgoing"])
        assert all(root.start_time <= each.start_time <= each.end_time <= root.end_time for each in children)
    about, done = roots["outgoing"].attributes, migration.stats
    assert about["blkmig.migration"] == "tcp:x:1"
    assert (about["blkmig.disks"], about["blkmig.disk_bytes"]) == (1, 4 * MIB)
    assert about["blkmig.transferred_bytes"] == done.transferred
    assert about["blkmig.downtime_seconds"] == done.downtime


def test_rounds_belong_to_their_phase_and_are_bounded(
    exported: in_memory_span_exporter.InMemorySpanExporter, provider: sdk.TracerProvider
) -> None:
    now = [10**18]
    found = spans.MigrationSpans("m", clock=lambda: now[0])
    found(stats.StatusChanged(0.0, "active"))
    for number in range(200):
        now[0] += spans.NS
        found(stats.RoundEnded(1.0, stats.RoundStatistics(number, 5, 4, 0.5, 3), 2, 1))
    found(stats.NotConverging(1.0, 9.0, 8.0, 7, 6, 5))
    found(stats.Reconnecting(1.0, "gone"))
    found(stats.StatusChanged(1.0, "device"))
    found(stats.RoundEnded(1.0, stats.RoundStatistics(200, 5, 4, 0.5, 3), 2, 1))
    found(stats.StatusChanged(1.0, "active"))  # the pause was given up
    found(stats.StatusChanged(1.0, "completed"))
    done = exported.get_finished_spans()
    [dirty] = [each for each in done if each.name == "blkmig.dirty"]
    rounds = [each for each in done if each.name == "blkmig.round"]
    assert len(rounds) == spans.MOST_ROUNDS
    assert {each.parent.span_id for each in rounds if each.parent} == {dirty.context.span_id}
    assert rounds[0].attributes == {
        "blkmig.round": 1, "blkmig.dirty_bytes": 5, "blkmig.transferred_bytes": 4, "blkmig.redirtied_bytes": 3,
        "blkmig.pending_bytes": 2,
    }  # fmt: skip
    assert rounds[0].end_time - rounds[0].start_time == spans.NS // 2
    [root] = [each for each in done if each.name == "blkmig.migration"]
    assert root.attributes["blkmig.rounds"] == 199
    assert [event.name for event in root.events] == ["not converging", "reconnecting"]
    assert sum(each.name == "blkmig.pause" for each in done) == 1


def test_a_failure_has_its_kind_and_no_text_that_may_be_secret(
    tmp_path: Path, exported: in_memory_span_exporter.InMemorySpanExporter
) -> None:
    disk = blkmig.MemoryBackend(bytearray(os.urandom(MIB)), name="vda")
    with pytest.raises(errors.ChannelError):
        blkmig.outgoing([disk], f"unix:{tmp_path}/SECRET", on_progress=spans.MigrationSpans("exec")).__enter__()
    cancelled = spans.MigrationSpans("m")
    cancelled(stats.StatusChanged(0.0, "setup"))
    cancelled(stats.StatusChanged(0.0, "cancelled"))
    found = [each for each in exported.get_finished_spans() if each.name == "blkmig.migration"]
    assert [(each.status.status_code, each.attributes["error.type"]) for each in found] == [
        (trace.StatusCode.ERROR, "ChannelError"),
        (trace.StatusCode.ERROR, "Cancelled"),
    ]
    assert "SECRET" not in str([each.to_json() for each in exported.get_finished_spans()])


def test_a_tracer_that_fails_stops_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Fails(sdk.SpanProcessor):
        def on_start(self, span: object, parent_context: object = None) -> None:
            raise RuntimeError("no room")

    provider = sdk.TracerProvider()
    provider.add_span_processor(Fails())
    monkeypatch.setattr(spans, "tracer", lambda: provider.get_tracer("test"))
    found = spans.MigrationSpans("m")
    for _ in range(3):
        found(stats.StatusChanged(0.0, "setup"))
    assert [record.getMessage() for record in caplog.records] == [
        "the migration is traced no more: RuntimeError: no room"
    ]
