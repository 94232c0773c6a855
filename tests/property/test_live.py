# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are written while they move: after the switchover both ends are equal, whatever the writers did."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest
import writer_threads

import blkmig
from blkmig import _core, errors
from blkmig.block import save, send
from blkmig.disk import LocalBackend

MIB = lab.MIB
SIZE = 9 * MIB + 1536
LAST = SIZE - SIZE % 512 - MIB  # where the last, overlapping block starts


class Writers(writer_threads.WriterThreads):
    """Threads that write, zero and rewrite at random, the last blocks most of all, until they are turned away."""

    def __init__(self, disk: LocalBackend, seed: int, *, count: int = 3) -> None:
        super().__init__(seed * 100 + number for number in range(count))
        self.writes = 0
        self._disk = disk

    def write_until_stopped(self, rng: random.Random) -> None:
        while not self.stop.is_set():
            try:
                self._write(rng)
            except errors.DeviceError as error:
                if "moved" not in str(error):
                    self.failures.append(error)
                return

    def _write(self, rng: random.Random) -> None:
        size = self._disk.size
        start = LAST - 70_000 if rng.random() < 0.5 else 0
        nbytes = rng.choice((1, 512, 4096, 70_000))
        offset = rng.randrange(start, size - nbytes + 1)
        if rng.random() < 0.3:
            self._disk.pwrite_zeroes(offset, nbytes)
        else:
            self._disk.pwrite(rng.randbytes(nbytes), offset)
        self.writes += 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("granularity", [MIB, 1 << 12])
def test_writers_in_other_threads(tmp_path: Path, seed: int, reading: str, granularity: int) -> None:
    content = lab.random_disk(random.Random(seed), SIZE)
    disk: LocalBackend
    if seed % 2:
        disk = blkmig.FileBackend(lab.sparse_file(tmp_path / "s.raw", content), name="d")
    else:
        disk = blkmig.MemoryBackend(bytearray(content), name="d")

    def drive(migration: blkmig.OutgoingMigration) -> None:
        while len(migration.stats.rounds) < 4 or writers.writes < 300:
            migration.iterate()
        migration.complete()

    with disk:
        with Writers(disk, seed) as writers:
            sent, _ = lab.migrate(
                tmp_path,
                "unix",
                [disk],
                {"d": tmp_path / "t.raw"},
                drive=drive,
                reading=reading,
                granularity=granularity,
                writers_after="refuse",
            )
        after = disk.pread(0, SIZE)
    assert (tmp_path / "t.raw").read_bytes() == after, f"seed {seed}, {writers.writes} writes"
    assert sent.downtime is not None
    assert sent.rounds[-1].number >= 3


def test_writers_go_on_after_a_copy(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(SIZE), name="d")
    with disk:
        with Writers(disk, 99) as writers:
            lab.migrate(tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, downtime_limit=10)
            seen = writers.writes
            disk.pwrite(b"still mine", 0)
            while writers.writes == seen:
                threading.Event().wait(0.001)
        assert not writers.failures


class RacingDisk(blkmig.MemoryBackend):
    """A disk that is written in the middle of its reads, the worst moment: after the data was taken."""

    def __init__(self, size: int) -> None:
        super().__init__(bytearray(size), name="d")
        self.races: list[int] = []
        self.rng = random.Random(1)

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        is_zero = super().read_block(blk, offset, nbytes)
        self._race(offset)
        return is_zero

    def read_extents(self, blk: _core.BlockBuffer, extents: list[tuple[int, int]]) -> None:
        super().read_extents(blk, extents)
        self._race(extents[0][0])

    def _race(self, offset: int) -> None:
        if self.races and self.races[-1] == offset:
            self.races.pop()
            self.pwrite(self.rng.randbytes(512), offset + 1024)


def race(tmp_path: Path, reading: str, phase: str, section: str) -> bool:
    """Return whether both ends are equal after a write raced the read of block 2, or of a pack, in this phase."""
    disk = RacingDisk(5 * MIB)

    def drive(migration: blkmig.OutgoingMigration) -> None:
        if phase == "dirty":
            migration.iterate()
            disk.pwrite(b"dirty", 2 * MIB + 5)
        disk.races = [2 * MIB]
        while disk.races:
            migration.iterate()
        migration.complete()

    options = {"reading": reading, "zero_blocks": False, "format": section}
    sent, _ = lab.migrate(tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, drive=drive, **options)
    assert phase == "bulk" or bool(sent.packs) is (section == "blkmig")
    return (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("phase", ["bulk", "dirty"])
@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_a_write_that_races_a_read_is_sent_again(tmp_path: Path, reading: str, phase: str, section: str) -> None:
    assert race(tmp_path, reading, phase, section)


@pytest.mark.parametrize("phase", ["bulk", "dirty"])
@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_clearing_after_the_read_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, section: str
) -> None:
    """The negative control: QEMU's order until 2.12 loses the write, and `race` sees it."""

    def read_then_clear(blk_mig: object, bmds: Any, block: int, blk: Any, pack: object = None) -> None:
        original(blk_mig, bmds, block, blk, pack)
        bmds.dirty_bitmap.take_blocks(block, blk.nblocks)

    original: Callable[..., None] = send.submit
    monkeypatch.setattr(send, "submit", read_then_clear)
    assert not race(tmp_path, "inline", phase, section)


@pytest.mark.parametrize("reading", ["inline", "parallel"])
def test_completing_at_once_still_sends_all(tmp_path: Path, reading: str) -> None:
    """QEMU 7.2 to 9.0 finish while bulk is incomplete, and lose the rest."""
    content = lab.random_disk(random.Random(11), SIZE)
    with blkmig.MemoryBackend(bytearray(content), name="d") as disk:

        def drive(migration: blkmig.OutgoingMigration) -> None:
            assert migration.pending() >= SIZE
            migration.complete()

        lab.migrate(tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, drive=drive, reading=reading)
    assert (tmp_path / "t.raw").read_bytes() == content


def test_pending_counts_bulk_until_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bandwidth and a downtime limit that would allow everything, bulk still counts in full."""
    monkeypatch.setattr(save, "SECTION_SECONDS", 60.0)  # so that one section is enough on a busy machine, too
    disk = blkmig.MemoryBackend(bytearray(b"x" * SIZE), name="d")
    with disk, blkmig.outgoing([disk], f"file:{tmp_path}/stream") as migration:
        assert migration.pending() == -(-SIZE // 512) * 512
        migration.iterate()
        assert migration.pending() == 0
        disk.pwrite(b"y", LAST)  # in the overlap: two blocks cover it
        assert migration.pending() == 2 * MIB
        migration.complete()


class SlowDisk(blkmig.MemoryBackend):
    """A disk whose reads take turns, and that counts the reads of each block that are in flight."""

    def __init__(self, size: int) -> None:
        super().__init__(bytearray(b"s" * size), name="d")
        self.most_parallel = self.most_of_one_block = self.reads = 0
        self._in_flight: dict[int, int] = {}
        self._counting = threading.Lock()

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        with self._counting:
            self.reads += 1
            self._in_flight[offset] = self._in_flight.get(offset, 0) + 1
            self.most_of_one_block = max(self.most_of_one_block, self._in_flight[offset])
            self.most_parallel = max(self.most_parallel, sum(self._in_flight.values()))
        try:
            threading.Event().wait(0.002 * (1 + offset // MIB % 3))
            return super().read_block(blk, offset, nbytes)
        finally:
            with self._counting:
                self._in_flight[offset] -= 1


def test_one_read_of_a_block_in_flight(tmp_path: Path) -> None:
    disk = SlowDisk(12 * MIB)

    def drive(migration: blkmig.OutgoingMigration) -> None:
        while disk.reads < 100:
            disk.pwrite(b"w", 3 * MIB)
            disk.mark_dirty(0, disk.size)
            migration.iterate()
        migration.complete()

    lab.migrate(tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, drive=drive, reading="parallel")
    assert disk.most_of_one_block == 1
    assert 1 < disk.most_parallel <= 16
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)


def test_no_disk_and_no_high_sector_starves(tmp_path: Path) -> None:
    """A writer that keeps the first block of the first disk dirty does not keep the others from being sent."""
    disks = [blkmig.MemoryBackend(bytearray(b"a" * 4 * MIB), name=name) for name in "de"]

    def drive(migration: blkmig.OutgoingMigration) -> None:
        migration.iterate()
        for disk in disks:
            disk.mark_dirty(0, disk.size)
        before = migration.stats.blocks
        for _ in range(4):
            disks[0].mark_dirty(0, 1)
            migration.iterate()
        assert migration.pending() <= MIB
        assert migration.stats.blocks - before >= 8
        migration.complete()

    lab.migrate(tmp_path, "unix", list(disks), {}, drive=drive, receive={"into": tmp_path})
