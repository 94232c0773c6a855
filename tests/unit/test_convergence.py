# SPDX-License-Identifier: GPL-2.0-or-later
"""When the rounds end and the pause begins, with a clock that only reading turns."""

from __future__ import annotations

from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import _core
from blkmig.migration import convergence

MIB = lab.MIB
READ_SECONDS = 0.01


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class BusyDisk(blkmig.MemoryBackend):
    """A disk whose reads take 10 ms a block, and of which `rate` blocks are written a second, one after the other."""

    def __init__(self, nblocks: int, rate: float, clock: Clock) -> None:
        super().__init__(bytearray(b"x" * nblocks * MIB), name="d")
        self.rate, self.clock = rate, clock
        self.is_held = False
        self._due = 0.0
        self._next = 0

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        is_zero = super().read_block(blk, offset, nbytes)
        self.clock.now += READ_SECONDS
        if not self.is_held:
            self._due += self.rate * READ_SECONDS
        while self._due >= 1:
            self._due -= 1
            self._next = (self._next + MIB) % self.size
            self.pwrite(b"w", self._next)
        return is_zero

    def hold_writers(self) -> None:
        super().hold_writers()
        self.is_held = True


def migrate(tmp_path: Path, rate: float, **parameters: object) -> blkmig.stats.OutgoingStatistics:
    """Migrate 64 MiB at 100 blocks a second, and return the statistics; the target is equal to the source."""
    clock = Clock()
    disk = BusyDisk(64, rate, clock)
    chosen = blkmig.MigrationParameters(**{"downtime_limit": 5, "writers_after": "refuse", **parameters})
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    with blkmig.migration.OutgoingMigration([disk], receiver.uri, chosen, clock=clock) as migration:
        migration.run()
    receiver.result()
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)
    return migration.stats


def test_rounds_go_on_below_the_limit_while_they_get_shorter(tmp_path: Path) -> None:
    """Half of what a round sends is dirty again after it: 64, 32, 16 ... blocks, and all of them fit the limit."""
    stats = migrate(tmp_path, 50)
    assert stats.downtime is not None
    assert stats.downtime <= 2.5 * READ_SECONDS
    assert len(stats.rounds) <= 10


@pytest.mark.parametrize("rate", [80, 100, 400])
def test_rounds_that_get_no_shorter_come_to_an_end(tmp_path: Path, rate: float) -> None:
    stats = migrate(tmp_path, rate)
    assert stats.downtime is not None
    assert stats.downtime < 0.8
    assert len(stats.rounds) <= 5


def test_an_idle_disk_needs_no_round(tmp_path: Path) -> None:
    stats = migrate(tmp_path, 0)
    assert stats.downtime == 0
    assert stats.blocks == 64


@pytest.mark.parametrize("max_rounds", [1, 2])
def test_no_more_rounds_than_allowed_are_spent_on_a_shorter_pause(tmp_path: Path, max_rounds: int) -> None:
    stats = migrate(tmp_path, 50, max_rounds=max_rounds)
    assert max(entry.number for entry in stats.rounds[:-1]) <= max_rounds


def test_a_tight_limit_is_kept(tmp_path: Path) -> None:
    stats = migrate(tmp_path, 50, downtime_limit=0.05)
    assert stats.downtime is not None
    assert stats.downtime <= 0.05


def test_descent() -> None:
    descent = convergence.Descent()
    assert [descent.has_ended(pending) for pending in (100, 75, 74, 56, 55)] == [False, False, True, False, True]
    assert descent.has_ended(0)
    assert convergence.Descent().has_ended(0)


@pytest.mark.parametrize(
    ("limits", "elapsed", "rounds", "has_time"),
    [
        ({}, 1e6, 1000, True),
        ({"max_rounds": 3}, 0.0, 2, True),
        ({"max_rounds": 3}, 0.0, 3, False),
        ({"timeout": 10, "downtime_limit": 1}, 8.9, 0, True),
        ({"timeout": 10, "downtime_limit": 1}, 9.0, 0, False),
    ],
)
def test_has_time(limits: dict[str, float], elapsed: float, rounds: int, has_time: bool) -> None:
    parameters = blkmig.MigrationParameters(**limits)
    assert convergence.has_time(parameters, elapsed=elapsed, rounds=rounds) == has_time
