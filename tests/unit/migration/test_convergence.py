# SPDX-License-Identifier: GPL-2.0-or-later
"""When the rounds end and the pause begins, with a clock that only reading turns."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import _core, errors, stats
from blkmig.migration import autoconverge, convergence

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
        self._due = 0.0
        self._next = 0

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        is_zero = super().read_block(blk, offset, nbytes)
        self.clock.now += READ_SECONDS
        if not self.is_held:
            self._due += self.rate * READ_SECONDS
        while self._due >= 1:
            self._due -= 1
            self._next = self.next_place(self._next)
            self.pwrite(b"w", self._next)
        return is_zero

    def next_place(self, place: int) -> int:
        return (place + MIB) % self.size


def migrate(
    tmp_path: Path, rate: float, *, kind: type[BusyDisk] = BusyDisk, **parameters: object
) -> blkmig.stats.OutgoingStatistics:
    """Migrate 64 MiB at 100 blocks a second, and return the statistics; the target is equal to the source."""
    clock = Clock()
    disk = kind(64, rate, clock)
    chosen = blkmig.MigrationParameters(
        **{"downtime_limit": 5, "writers_after": "refuse", "format": "block", **parameters}  # its reads take time
    )
    tmp_path.mkdir(exist_ok=True)
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


class FarDisk(BusyDisk):
    """A disk that takes `seconds` to tell what is dirty, and is written meanwhile."""

    seconds = 0.0

    def sync_dirty(self) -> None:
        super().sync_dirty()
        self.clock.now += self.seconds

    def next_place(self, place: int) -> int:
        return (place + 37 * MIB) % self.size


def test_no_round_more_where_asking_takes_longer_than_sending(tmp_path: Path) -> None:
    """The second round leaves what is read more quickly than the next one is fetched, which will have as much."""
    counts = []
    for FarDisk.seconds in (0.0, 0.05):
        stats = migrate(tmp_path / str(FarDisk.seconds), 50, kind=FarDisk)
        counts.append(len(stats.rounds))
    assert counts == [6, 4]


@pytest.mark.parametrize("rate", [80, 100, 400])
def test_rounds_that_get_no_shorter_come_to_an_end(tmp_path: Path, rate: float) -> None:
    stats = migrate(tmp_path, rate)
    assert stats.downtime is not None
    assert stats.downtime < 0.8
    assert stats.dirty_rounds == sum(entry.blocks > 0 for entry in stats.rounds[1:-1]) <= 2
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


class HotDisk(BusyDisk):
    """A disk of which `hot` blocks are written at random, `rate` times a second, 64 KiB each time, unless slowed down.
    """

    def __init__(self, nblocks: int, rate: float, clock: Clock, hot: int) -> None:
        super().__init__(nblocks, rate, clock)
        self._full_rate, self._hot, self._rng = rate, hot, random.Random(hot)
        self.fractions: list[float] = []

    def pwrite(self, data: Any, offset: int) -> None:
        super().pwrite(bytes(1 << 16), self._rng.randrange(self._hot) * (self.size // self._hot // MIB) * MIB)

    def throttle_writers(self, fraction: float) -> bool:
        self.rate = self._full_rate * fraction
        if fraction < 1:
            self.fractions.append(fraction)
        return True


@pytest.mark.parametrize(("hot", "rate"), [(24, 200), (96, 90), (96, 400)])
def test_auto_converge_computes_the_speed_that_the_link_carries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hot: int, rate: int
) -> None:
    """E11: one step or two, and no slower than is needed: 100 blocks a second are carried, so 40 may be dirtied."""
    clock = Clock()
    disk = HotDisk(96, rate, clock, hot)
    chosen = blkmig.MigrationParameters(
        downtime_limit=0.1, auto_converge=True, writers_after="refuse", zero_blocks=False, format="block"
    )
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    with blkmig.migration.OutgoingMigration([disk], receiver.uri, chosen, clock=clock) as migration:
        migration.run()
    receiver.result()
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)
    assert 1 <= len(disk.fractions) <= 2
    assert 0.2 <= disk.fractions[-1] * rate / 100 <= 0.55
    own = float(caplog.messages[0].partition("by writing ")[2].split()[0])
    assert own == pytest.approx(rate / 16, rel=0.2), "MiB/s that the writers really write"


def test_who_does_not_converge_is_told_what_the_writers_write() -> None:
    """E11: 400 times a second 64 KiB, in a block somewhere."""
    clock = Clock()
    told: list[stats.NotConverging] = []
    chosen = blkmig.MigrationParameters(downtime_limit=0.1, max_rounds=8, zero_blocks=False, format="block")
    migration = blkmig.OutgoingMigration(
        [HotDisk(96, 400, clock, 96)],
        "file:/dev/null",
        chosen,
        on_progress=lambda event: told.append(event) if isinstance(event, stats.NotConverging) else None,
        clock=clock,
    )
    words = r"the writers write 2\d.\d MiB/s, which dirties"
    with pytest.raises(errors.NotConverged, match=words) as caught, migration:
        migration.run()
    own = 400 / 16 * MIB
    assert caught.value.written_rate == pytest.approx(own, rel=0.1)
    assert [event.written_rate for event in told] == [pytest.approx(own, rel=0.1)] * len(told)
    assert told


def test_a_disk_that_cannot_count_ends_no_migration(tmp_path: Path) -> None:
    class Uncounted(blkmig.MemoryBackend):
        def written_bytes(self) -> int:
            raise errors.DeviceError("cannot tell", device="d", cause="nobody answers")

    with Uncounted(bytearray(b"x" * 2 * MIB), name="d") as disk:
        assert blkmig.send([disk], f"file:{tmp_path}/s").status == "completed"


@pytest.mark.parametrize(("speed", "hot"), [(80, 50), (500, 1000), (60, 10_000)])
def test_the_speed_is_found_behind_blocks_that_are_dirty_already(speed: float, hot: int) -> None:
    def left(seconds: float) -> float:
        return hot * autoconverge.share(speed * seconds / hot) * MIB

    found = autoconverge.hot_blocks(left(20), 20, left(4), 4)
    if not math.isinf(found):
        assert autoconverge.speed_of(found, left(4) / MIB, 4) == pytest.approx(speed, rel=0.1)
    else:
        assert left(4) * 5 == pytest.approx(left(20), rel=0.06)  # nothing is hidden


def test_descent() -> None:
    descent = convergence.Descent()
    assert [descent.has_ended(pending) for pending in (100, 75, 74, 56, 55)] == [False, False, True, False, True]
    assert descent.has_ended(0)
    assert convergence.Descent().has_ended(0)


def test_a_round_that_is_no_shorter_ends_the_descent() -> None:
    """It leaves less by chance: where the writer is when the round ends."""
    descent = convergence.Descent()
    descent.round_ended(64)
    assert not descent.has_ended(51)
    descent.round_ended(48)
    assert not descent.has_ended(38)
    descent.round_ended(37)
    assert descent.has_ended(10)


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
