# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions, with a clock that the test turns."""

from __future__ import annotations

import pytest

import blkmig
from blkmig.migration.forecasting import count_data, dirty_after, forecast

MIB = 1 << 20


class Clock:
    """Seconds that pass only when somebody sleeps; each time `on_sleep` is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.on_sleep = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


def test_idle_disk_needs_no_round() -> None:
    clock = Clock()
    with blkmig.MemoryBackend(bytearray(8 * MIB), name="d") as disk:
        found = forecast(
            [disk], blkmig.MigrationParameters(max_bandwidth="4M"), seconds=1, clock=clock, sleep=clock.sleep
        )
        disk.pwrite(b"free again", 0)
    assert (found.data_bytes, found.rounds, found.downtime, found.converges) == (8 * MIB, 0, 0.0, True)
    assert found.total_time == pytest.approx(2.0)
    assert found.total_bytes == 8 * MIB


def test_a_writer_of_one_hot_block_converges_at_once() -> None:
    clock = Clock()
    with blkmig.MemoryBackend(bytearray(64 * MIB), name="d") as disk:
        clock.on_sleep = lambda: disk.pwrite(b"hot", 5 * MIB)
        params = blkmig.MigrationParameters(max_bandwidth="16M", downtime_limit=0.1)
        found = forecast([disk], params, seconds=2, clock=clock, sleep=clock.sleep)
    assert found.converges
    assert found.downtime == pytest.approx(1 / 16)


def test_a_writer_faster_than_the_link_does_not_converge() -> None:
    clock = Clock()
    with blkmig.MemoryBackend(bytearray(64 * MIB), name="d") as disk:
        state = {"next": 0}

        def write() -> None:
            for _ in range(2):
                disk.pwrite(b"w", state["next"] % 64 * MIB)
                state["next"] += 1

        clock.on_sleep = write
        params = blkmig.MigrationParameters(max_bandwidth="8M", downtime_limit=0.1)
        found = forecast([disk], params, seconds=1, clock=clock, sleep=clock.sleep)
    assert not found.converges
    assert found.dirty_rate == pytest.approx(40 * MIB, rel=0.1)
    assert found.downtime > 0.1


@pytest.mark.parametrize(("seconds", "dirty"), [(0, 0), (1, 10), (1.5, 15), (2, 20), (4, 30), (6, 40), (100, 70)])
def test_curve(seconds: float, dirty: float) -> None:
    curve = [(0.0, 0), (2.0, 20), (4.0, 30)]
    assert dirty_after(curve, seconds, 70) == pytest.approx(dirty)


def test_holes_are_not_data(tmp_path: object) -> None:
    with blkmig.FileBackend.create(f"{tmp_path}/d.raw", 64 * MIB) as disk:
        disk.pwrite(b"a", 10)
        disk.pwrite(b"b", 10 * MIB + 4096)
        disk.pwrite(b"c" * 2 * MIB, 20 * MIB - 5)
        assert count_data(disk) == (1 + 1 + 3) * MIB
