# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions, with a clock that the test turns, compared with what happens."""

from __future__ import annotations

import dataclasses
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blkmig
from blkmig import _core, block
from blkmig.migration import filling
from blkmig.migration.forecasting import forecast

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
        params = blkmig.MigrationParameters(max_bandwidth="16M", downtime_limit=0.1, format="block")
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
        params = blkmig.MigrationParameters(max_bandwidth="8M", downtime_limit=0.1, format="block")
        found = forecast([disk], params, seconds=1, clock=clock, sleep=clock.sleep)
    assert not found.converges
    assert found.dirty_rate == pytest.approx(40 * MIB, rel=0.1)
    assert found.downtime > 0.1


def test_holes_are_not_data(tmp_path: object) -> None:
    with blkmig.FileBackend.create(f"{tmp_path}/d.raw", 64 * MIB) as disk:
        disk.pwrite(b"a", 10)
        disk.pwrite(b"b", 10 * MIB + 4096)
        disk.pwrite(b"c" * 2 * MIB, 20 * MIB - 5)
        found = forecast([disk], blkmig.MigrationParameters(max_bandwidth="1G"), seconds=0)
        assert found.data_bytes == (1 + 1 + 3) * MIB


@pytest.mark.parametrize("zero_blocks", [True, False])
def test_there_is_no_more_data_than_disk(tmp_path: Path, zero_blocks: bool) -> None:
    """The last block of a disk may be a short one; on the wire it is a whole one all the same."""
    with blkmig.FileBackend.create(f"{tmp_path}/d.raw", 4 * MIB + 512) as disk:
        disk.pwrite(b"x", 4 * MIB)
        parameters = blkmig.MigrationParameters(max_bandwidth="1G", zero_blocks=zero_blocks)
        found = forecast([disk], parameters, seconds=0)
        assert found.data_bytes == (512 if zero_blocks else disk.size)
        assert found.total_bytes == (1 if zero_blocks else 5) * MIB


# -- E9: what was predicted is what happens ----------------------------------------------------------------------------

READ_SECONDS = 0.01  # a block; so the link carries 100 MiB/s


class LoadedDisk(blkmig.MemoryBackend):
    """A disk with several writers, whose time is a clock's, and passes when blocks are read."""

    def __init__(self, nblocks: int, clock: Clock) -> None:
        super().__init__(bytearray(b"x" * nblocks * MIB), name="d")
        self.clock = clock
        self._nblocks = nblocks
        self._writers: list[tuple[float, Callable[[], float]]] = []  # writes a second, and which block comes next
        self._due: list[float] = []

    def add_hot(self, rng: random.Random, rate: float, first: int, count: int) -> None:
        """Write `rate` times a second to one of `count` blocks."""
        self._add(rate, lambda: first + rng.randrange(count))

    def add_sequential(self, rate: float) -> None:
        """Write 16 pieces of each block, one block after the other, round the disk."""
        position = [0]

        def following() -> int:
            position[0] += 1
            return position[0] // 16 % self._nblocks

        self._add(rate * 16, following)

    def add_pieces(self, rng: random.Random, rate: float, first: int, count: int) -> None:
        """Write `rate` times a second to one of the pieces of 4 KiB of `count` blocks."""
        self._add(rate, lambda: first + rng.randrange(count * 256) / 256)

    def _add(self, rate: float, following: Callable[[], float]) -> None:
        self._writers.append((rate, following))
        self._due.append(0.0)

    def pass_by(self, seconds: float) -> None:
        """Let time pass, in which the writers write."""
        self.clock.now += seconds
        for number, (rate, following) in enumerate(self._writers):
            self._due[number] += 0 if self.is_held else rate * seconds
            while self._due[number] >= 1:
                self._due[number] -= 1
                self.pwrite(b"w", int(following() * MIB))

    def sleep(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(round(seconds * 1000)):
            self.pass_by(0.001)

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        is_zero = super().read_block(blk, offset, nbytes)
        self.pass_by(READ_SECONDS)
        return is_zero

    def read_extents(self, blk: _core.BlockBuffer, extents: list[tuple[int, int]]) -> None:
        super().read_extents(blk, extents)
        self.pass_by(READ_SECONDS * sum(nbytes for _, nbytes in extents) / MIB)


def hot_spot(disk: LoadedDisk, rng: random.Random) -> None:
    disk.add_hot(rng, 400, 7, 12)


def mixed(disk: LoadedDisk, rng: random.Random) -> None:
    disk.add_hot(rng, 200, 3, 8)
    disk.add_hot(rng, 15, 100, 90)
    disk.add_sequential(5)


def scattered(disk: LoadedDisk, rng: random.Random) -> None:
    disk.add_hot(rng, 40, 0, 256)


def sequential(disk: LoadedDisk, rng: random.Random) -> None:
    disk.add_sequential(30)


def two_regions(disk: LoadedDisk, rng: random.Random) -> None:
    disk.add_hot(rng, 30, 200, 40)
    disk.add_hot(rng, 30, 20, 150)


def wide_spot(disk: LoadedDisk, rng: random.Random) -> None:
    disk.add_hot(rng, 800, 7, 50)


def pieces(disk: LoadedDisk, rng: random.Random) -> None:
    disk.add_pieces(rng, 3000, 40, 24)


LOADS = [(hot_spot, 0.3), (mixed, 0.3), (scattered, 0.3), (sequential, 0.3), (two_regions, 1.0), (wide_spot, 1.0)]


@pytest.mark.parametrize("section", ["block", "blkmig"])
@pytest.mark.parametrize(("load", "limit"), [*LOADS, (pieces, 0.3)])
def test_a_forecast_is_what_happens(
    tmp_path: Path, load: Callable[[LoadedDisk, random.Random], None], limit: float, section: block.Format
) -> None:
    """E9: within 20 % of the downtime, or the two blocks that a writer may be in the middle of, and 15 % of the bytes.
    """
    downtimes, sizes = [], []
    for seed in range(2):
        disk = LoadedDisk(256, Clock())
        load(disk, random.Random(seed))
        parameters = blkmig.MigrationParameters(
            downtime_limit=limit, writers_after="refuse", zero_blocks=False, format=section
        )
        found = forecast(
            [disk], parameters, bandwidth=MIB / READ_SECONDS, clock=disk.clock, sleep=disk.sleep
        )
        assert found.converges
        outgoing = blkmig.OutgoingMigration([disk], "file:/dev/null", parameters, clock=disk.clock)
        with outgoing:
            outgoing.run()
        downtimes.append((found.downtime, outgoing.stats.downtime or 0.0))
        sizes.append((found.total_bytes, outgoing.stats.transferred))
    predicted, real = (sum(values) / 2 for values in zip(*downtimes, strict=True))
    assert predicted == pytest.approx(real, rel=0.2, abs=2 * READ_SECONDS)
    predicted, real = (sum(values) / 2 for values in zip(*sizes, strict=True))
    assert predicted == pytest.approx(real, rel=0.15)


class SlowedDisk(LoadedDisk):
    """A disk whose writers can be slowed down."""

    fraction = least = 1.0

    def throttle_writers(self, fraction: float) -> bool:
        self.fraction, self.least = fraction, min(fraction, self.least)
        return True

    def pass_by(self, seconds: float) -> None:
        self.clock.now += seconds * (1 - self.fraction)
        super().pass_by(seconds * self.fraction)


@pytest.mark.parametrize(
    ("section", "hot", "rate"),
    [("block", 120, 400), ("block", 256, 150), ("blkmig", 120, 20_000), ("blkmig", 64, 40_000)],
)
def test_a_forecast_knows_what_auto_converge_will_do(section: block.Format, hot: int, rate: int) -> None:
    """E9: that it converges, how far the writers are slowed, and what it takes; writes go to blocks, or to pieces."""
    disk = SlowedDisk(256, Clock())
    (disk.add_hot if section == "block" else disk.add_pieces)(random.Random(1), rate, 0, hot)
    parameters = blkmig.MigrationParameters(
        downtime_limit=0.1, auto_converge=True, writers_after="refuse", zero_blocks=False, format=section
    )
    found = forecast([disk], parameters, bandwidth=MIB / READ_SECONDS, clock=disk.clock, sleep=disk.sleep)
    outgoing = blkmig.OutgoingMigration([disk], "file:/dev/null", parameters, clock=disk.clock)
    with outgoing:
        outgoing.run()
    assert found.converges
    assert found.writers_fraction == pytest.approx(disk.least, rel=0.3)
    assert found.total_bytes == pytest.approx(outgoing.stats.transferred, rel=0.15)
    assert found.downtime == pytest.approx(outgoing.stats.downtime, rel=0.2, abs=2 * READ_SECONDS)


@pytest.mark.parametrize(
    ("uri", "options", "expected"),
    [
        (None, {}, "blkmig"),
        ("tcp:localhost:1", {}, "blkmig"),
        ("unix:/nowhere", {}, "blkmig"),
        ("file:/dev/null", {}, "block"),
        ("exec:cat", {}, "block"),
        ("fd:0", {"format": "blkmig"}, "blkmig"),
        ("tcp:localhost:1", {"qemu": True}, "block"),
        ("tcp:localhost:1", {"machine": "pc"}, "block"),
        ("tcp:localhost:1", {"return_path": False}, "block"),
        ("tcp:localhost:1", {"format": "block"}, "block"),
    ],
)
def test_the_section_is_the_one_that_a_blkmig_would_take(
    uri: str | None, options: dict[str, Any], expected: block.Format
) -> None:
    disk = blkmig.MemoryBackend(bytearray(4 * MIB), name="d")
    parameters = blkmig.MigrationParameters(max_bandwidth="1G", connect_timeout=0.01, **options)
    assert forecast([disk], parameters, seconds=0, uri=uri).format == expected


def test_a_socket_that_was_given_goes_both_ways() -> None:
    disk = blkmig.MemoryBackend(bytearray(4 * MIB), name="d")
    parameters = blkmig.MigrationParameters(max_bandwidth="1G")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert forecast([disk], parameters, seconds=0, uri=f"fd:{ours.fileno()}").format == "blkmig"


def test_a_hot_piece_costs_a_piece() -> None:
    clock = Clock()
    with blkmig.MemoryBackend(bytearray(64 * MIB), name="d") as disk:
        clock.on_sleep = lambda: disk.pwrite(b"hot", 5 * MIB)
        params = blkmig.MigrationParameters(max_bandwidth="16M", downtime_limit=0.1)
        found = forecast([disk], params, seconds=2, clock=clock, sleep=clock.sleep)
        whole = forecast(
            [disk], dataclasses.replace(params, digests=True), seconds=2, clock=clock, sleep=clock.sleep
        )
    assert 0 < found.downtime <= 1 / 16 / 256
    assert found.dirty_rate == pytest.approx(2048)
    assert whole.downtime == pytest.approx(1 / 16), "with digests blocks go whole"


@pytest.mark.parametrize(("hot", "rate", "limit"), [(100, 30_000, 1.0), (60, 35_000, 0.5)])
def test_blocks_of_which_most_is_dirty_go_whole(hot: int, rate: int, limit: float) -> None:
    disk = LoadedDisk(256, Clock())
    disk.add_pieces(random.Random(1), rate, 40, hot)
    parameters = blkmig.MigrationParameters(downtime_limit=limit, zero_blocks=False, format="blkmig")
    found = forecast([disk], parameters, bandwidth=MIB / READ_SECONDS, clock=disk.clock, sleep=disk.sleep)
    outgoing = blkmig.OutgoingMigration([disk], "file:/dev/null", parameters, clock=disk.clock)
    with outgoing:
        outgoing.run()
    assert found.total_bytes == pytest.approx(outgoing.stats.transferred, rel=0.015)
    assert found.downtime == pytest.approx(outgoing.stats.downtime, rel=0.05)


def test_what_goes_along_is_what_bursts_at_random_leave() -> None:
    rng = random.Random(3)
    for pieces_of_a_burst in (1, 7, 40, 120):
        for bursts in (100_000 // pieces_of_a_burst, 200_000 // pieces_of_a_burst):
            blocks = [0] * 350
            for _ in range(bursts):
                block = rng.randrange(350)
                blocks[block] |= sum(1 << piece for piece in rng.sample(range(256), pieces_of_a_burst))
            marks = [block.bit_count() for block in blocks]
            sent = sum(256 if count >= 192 else count for count in marks) / 256
            dirty = sum(marks) / 256
            found = filling.Filling(350, pieces_of_a_burst / 256).going_along(dirty, 350)
            assert dirty + found == pytest.approx(sent, rel=0.02)
    assert filling.Filling(10, 1.0).going_along(7, 10) == 0
    assert filling.Filling(10, 1 / 256).going_along(0, 10) == 0
    assert filling.Filling(10, 1 / 256).going_along(7, 7) == 0, "blocks of which a part is written never go whole"
    assert filling.Filling(10, 1 / 256).going_along(9, 9) == pytest.approx(1)
    assert filling.Filling(10, 1 / 256).going_along(10, 10) == pytest.approx(0, abs=1e-6)


def test_a_forecast_hears_the_time_out() -> None:
    disk = LoadedDisk(256, Clock())
    disk.add_hot(random.Random(1), 90, 0, 256)
    parameters = blkmig.MigrationParameters(downtime_limit=0.01, timeout=5, zero_blocks=False, format="block")
    found = forecast([disk], parameters, bandwidth=MIB / READ_SECONDS, clock=disk.clock, sleep=disk.sleep)
    assert not found.converges
    assert 5 <= found.total_time < 10
