# SPDX-License-Identifier: GPL-2.0-or-later
"""What a collector says of a migration, as those who collect parse it."""

from __future__ import annotations

import dataclasses
import os
import typing
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import errors, stats

prometheus = pytest.importorskip("prometheus_client")

from prometheus_client import parser  # noqa: E402
from prometheus_client.openmetrics import exposition as openmetrics  # noqa: E402
from prometheus_client.openmetrics import parser as openmetrics_parser  # noqa: E402

from blkmig import metrics  # noqa: E402

MIB = lab.MIB
PROGRESSED = stats.Progressed(
    elapsed=12.5,
    phase="dirty",
    percent=50.0,
    transferred=700,
    remaining=300,
    total=1000,
    bandwidth=80.0,
    dirty_rate=20.0,
    expected_downtime=0.25,
    round_number=3,
)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def values(collector: metrics.MigrationMetrics) -> dict[str, Any]:
    """Return all samples: the name with the labels of its own, and the value; node_exporter's format, too."""
    registry = prometheus.CollectorRegistry()
    registry.register(collector)
    text = openmetrics.generate_latest(registry).decode()
    found = []
    for parse in (openmetrics_parser.text_string_to_metric_families, parser.text_string_to_metric_families):
        found.append({})
        for sample in (sample for family in parse(text) for sample in family.samples):
            own = {key: value for key, value in sample.labels.items() if key not in collector.labels}
            name = sample.name.removeprefix("blkmig_migration_")
            found[-1][name if not own else f"{name}{own}"] = sample.value
            assert sample.labels.items() >= collector.labels.items()
    assert found[0] == found[1]
    return found[0]


def phase(collector: metrics.MigrationMetrics) -> str:
    found = values(collector)
    [present] = [each for each in metrics.PHASES if found[f"phase{ {'phase': each} }"]]
    return present


def test_progress() -> None:
    collector = metrics.MigrationMetrics("tcp:dest:4444")
    collector(stats.StatusChanged(0.0, "active"))
    collector(PROGRESSED)
    collector(stats.RoundEnded(12.5, stats.RoundStatistics(number=3, dirty_bytes=5), 300, 100))
    found = values(collector)
    assert {name: found[name] for name in found if name.startswith(("data", "dirty", "transfer", "rounds", "exp"))} == {
        "data_processed_bytes": 700,
        "data_remaining_bytes": 300,
        "data_total_bytes": 1000,
        "dirty_rate_bytes": 20,
        "transfer_rate_bytes": 80,
        "expected_downtime_seconds": 0.25,
        "rounds": 3,
    }
    assert phase(collector) == "dirty"


def test_labels() -> None:
    assert metrics.MigrationMetrics('a"b\\c\nd').labels == {"migration": 'a"b\\c d', "direction": "outgoing"}
    values(metrics.MigrationMetrics('a"b\\c\nd\udc80'))


def test_phases_of_a_migration() -> None:
    collector = metrics.MigrationMetrics("m")
    assert phase(collector) == "none"
    seen = []
    for event in (
        stats.StatusChanged(0.0, "setup"),
        stats.StatusChanged(0.0, "active"),
        PROGRESSED,
        stats.StatusChanged(0.0, "device"),
        dataclasses.replace(PROGRESSED, phase="waiting"),
        stats.StatusChanged(0.0, "completed"),
    ):
        collector(event)
        seen.append(phase(collector))
    assert seen == ["setup", "bulk", "dirty", "switchover", "waiting", "completed"]
    assert values(collector)["succeeded"] == 1


@pytest.mark.parametrize(
    ("error", "ends", "failed"),
    [
        (errors.MigrationError("no"), "failed", {"failed{'reason': 'MigrationError'}": 1.0}),
        (errors.Cancelled("no"), "cancelled", {"failed{'reason': ''}": 0.0}),
        (KeyboardInterrupt(), "cancelled", {"failed{'reason': ''}": 0.0}),
    ],
)
def test_how_it_ended(error: BaseException, ends: str, failed: dict[str, float]) -> None:
    collector = metrics.MigrationMetrics("m")
    collector(stats.StatusChanged(0.0, "setup"))
    collector.ended(error)
    found = values(collector)
    assert (phase(collector), found["succeeded"]) == (ends, 0)
    assert {name: value for name, value in found.items() if name.startswith("failed")} == failed
    assert found["end_time_seconds"] >= found["start_time_seconds"]


def test_every_state_has_a_phase() -> None:
    states = {*typing.get_args(stats.Status)} - {"active", "device", "cancelling"}
    phases = {*typing.get_args(stats.Phase), *typing.get_args(stats.ReceivingPhase)}
    assert {*metrics.PHASES} == states | phases


def test_not_converging() -> None:
    collector = metrics.MigrationMetrics("m")
    collector(stats.NotConverging(9.0, 108.0 * MIB, 112.5 * MIB, 50 * MIB, MIB, 3))
    assert values(collector)["not_converging"] == 1
    collector(stats.StatusChanged(0.0, "device"))
    assert values(collector)["not_converging"] == 0


def test_idle_is_counted_where_bytes_are_due() -> None:
    clock = Clock()
    collector = metrics.MigrationMetrics("m", clock=clock)
    clock.now += 100
    assert values(collector)["stalled"] == 0, "nothing has begun"
    collector(stats.StatusChanged(0.0, "active"))
    collector(PROGRESSED)
    clock.now += 8.9
    collector(PROGRESSED)  # a report without a byte more
    assert values(collector)["stalled"] == 0
    clock.now += 0.1
    found = values(collector)
    assert (found["stalled"], found["idle_seconds"]) == (1, pytest.approx(9.0))
    collector(dataclasses.replace(PROGRESSED, transferred=701))
    assert values(collector)["stalled"] == 0
    collector(dataclasses.replace(PROGRESSED, transferred=702, remaining=0))
    clock.now += 100
    assert values(collector)["stalled"] == 0, "everything is sent, and nobody writes"
    collector(dataclasses.replace(PROGRESSED, transferred=702, phase="waiting"))
    clock.now += 100
    assert values(collector)["stalled"] == 0, "the target brings it to stable storage"


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_the_time_of_day_may_be_set_meanwhile(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """A migration of a minute had lasted for two hours, or for less than no time."""
    clock, day = Clock(), Clock()
    monkeypatch.setattr("blkmig.metrics.collector.time.time", day)
    collector = metrics.MigrationMetrics("m", clock=clock)
    collector(stats.StatusChanged(0.0, "active"))
    day.now += jump
    clock.now += 60
    assert values(collector)["elapsed_seconds"] == pytest.approx(60)
    collector(stats.StatusChanged(60.0, "completed"))
    clock.now += 60
    found = values(collector)
    assert found["elapsed_seconds"] == pytest.approx(60)
    assert found["end_time_seconds"] == pytest.approx(100 + jump)


def test_figures_of_a_migration_are_its_statistics(tmp_path: Path) -> None:
    """Both ends, with a disk's name that needs escaping."""
    names = ['d"1', "d2"]
    disks = [blkmig.MemoryBackend(bytearray(os.urandom(2 * MIB)), name=name) for name in names]
    incoming = metrics.MigrationMetrics("m", direction="incoming")
    targets = {name: tmp_path / str(index) for index, name in enumerate(names)}
    receiver = lab.Receiver(f"unix:{tmp_path}/s", targets, on_progress=incoming)
    incoming.follow(receiver.migration.stats)
    collector = metrics.MigrationMetrics("m")
    with blkmig.outgoing(disks, receiver.uri, on_progress=collector) as migration:
        collector.follow(migration.stats)
        migration.run()
    received = receiver.result()
    found, came = values(collector), values(incoming)
    assert found["downtime_seconds"] == migration.stats.downtime
    assert found["downtime_limit_seconds"] == migration.stats.downtime_limit
    assert found["data_processed_bytes"] == migration.stats.transferred
    assert (found["data_remaining_bytes"], found["data_total_bytes"]) == (0, 4 * MIB)
    assert came["data_processed_bytes"] == received.transferred
    assert (came["data_remaining_bytes"], came["data_total_bytes"]) == (0, 4 * MIB)
    for each in (found, came):
        assert [each[f"disk_size_bytes{ {'disk': name} }"] for name in names] == [2 * MIB, 2 * MIB]
        assert [each[f"disk_blocks{ {'disk': name} }"] for name in names] == [2, 2]
    assert [found[f"disk_remaining_bytes{ {'disk': name} }"] for name in names] == [0, 0]


NAMES = {
    *("phase", "succeeded", "failed", "start_time_seconds", "end_time_seconds", "elapsed_seconds"),
    *("data_processed_bytes", "data_remaining_bytes", "data_total_bytes", "transfer_rate_bytes", "dirty_rate_bytes"),
    *("downtime_seconds", "downtime_limit_seconds", "expected_downtime_seconds", "rounds", "not_converging"),
    *("idle_seconds", "stalled", "disk_size_bytes", "disk_remaining_bytes", "disk_blocks", "disk_resent_blocks"),
    "disk_packs",
}
"""All of them, in KubeVirt's manner: what it is about, what is counted, and the unit at the end."""


def test_names_are_those_of_the_guide() -> None:
    """Dashboards and alerts know them: one that goes, or comes, is a change that is said."""
    statistics = stats.OutgoingStatistics(downtime=0.1)
    statistics.disks["vda"] = stats.SentDiskStatistics("vda", MIB)
    collector = metrics.MigrationMetrics("m")
    collector.follow(statistics)
    for event in (stats.StatusChanged(0.0, "active"), PROGRESSED, stats.StatusChanged(1.0, "completed")):
        collector(event)
    families = list(collector.collect())
    assert {family.name for family in families} == {f"blkmig_migration_{name}" for name in NAMES}
    assert {family.type for family in families} == {"gauge"}
    guide = (Path(__file__).parents[3] / "docs/guides/watch.md").read_text()
    assert [name for name in NAMES if f"`{name}" not in guide] == []
    [phases] = [line for line in guide.splitlines() if line.startswith("| `phase{phase=")]
    assert [each for each in metrics.PHASES if f"`{each}`" not in phases] == []
