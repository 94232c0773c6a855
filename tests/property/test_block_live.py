# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole migrations under real threads: several disks and writers, random parameters, cancels, a storm of signals.

After a success both ends are equal, whatever happened; after a cancel the source is whole and free. Runs for a few
seconds; BLKMIG_STRESS_SECONDS makes it longer, BLKMIG_SEED chooses where the seeds begin.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest
import writer_threads

import blkmig
from blkmig import errors
from blkmig.disk import LocalBackend

MIB = lab.MIB
SECONDS = float(os.environ.get("BLKMIG_STRESS_SECONDS", "4"))
FIRST_SEED = int(os.environ.get("BLKMIG_SEED", "0"))


class Writers(writer_threads.WriterThreads):
    """Threads that write to all of `disks` until they are turned away."""

    def __init__(self, disks: list[LocalBackend], seed: int, *, count: int) -> None:
        super().__init__(seed * 31 + number for number in range(count))
        self._disks = disks

    def write_until_stopped(self, rng: random.Random) -> None:
        disks = list(self._disks)
        while disks and not self.stop.is_set():
            disk = rng.choice(disks)
            nbytes = min(disk.size, rng.choice((1, 512, 4096, 70_000, MIB)))
            low = max(0, disk.size - MIB - 70_000) if rng.random() < 0.4 else 0
            offset = rng.randrange(min(low, disk.size - nbytes), disk.size - nbytes + 1)
            try:
                if rng.random() < 0.4:
                    disk.pwrite_zeroes(offset, nbytes)
                else:
                    disk.pwrite(rng.randbytes(1) * nbytes, offset)
            except errors.DeviceError as error:
                disks.remove(disk)
                if "moved" not in str(error):
                    self.failures.append(error)
            self.stop.wait(rng.choice((0, 0, 0.001, 0.005)))


@contextlib.contextmanager
def random_disks(rng: random.Random, folder: Path) -> Iterator[list[LocalBackend]]:
    """Open one to three disks of any local kind and size."""
    with contextlib.ExitStack() as stack:
        disks: list[LocalBackend] = []
        for number in range(rng.randrange(1, 4)):
            content = lab.random_disk(rng, rng.choice(lab.SIZES))
            path = folder / f"s{number}.raw"
            disk: LocalBackend
            if rng.random() < 0.3:
                disk = blkmig.MemoryBackend(bytearray(content), name=f"d{number}")
            else:
                disk = blkmig.FileBackend(lab.sparse_file(path, content), name=f"d{number}")
            disks.append(stack.enter_context(disk))
        yield disks


def random_parameters(rng: random.Random) -> blkmig.MigrationParameters:
    return blkmig.MigrationParameters(
        zero_blocks=rng.random() < 0.8,
        granularity=rng.choice((MIB, 1 << 16, 1 << 12)),
        reading=rng.choice(("auto", "inline", "parallel", "parallel")),
        max_parallel_reads=rng.choice((1, 2, 16)),
        max_buffers=rng.choice((1, 2, 16, 40)),
        max_bandwidth=rng.choice((0, 0, 0, "200M")),
        downtime_limit=rng.choice((0.05, 0.3, 10)),
        digests=rng.random() < 0.5,
        return_path=rng.random() < 0.8,
        auto_converge=rng.random() < 0.3,
        writers_after="refuse",
        timeout=5,
    )


def stress(seed: int, folder: Path) -> str:
    """Play one random migration and return how it ended."""
    rng = random.Random(seed)
    parameters = random_parameters(rng)
    with random_disks(rng, folder) as disks, Writers(disks, seed, count=rng.randrange(1, 4)):
        receiver = lab.Receiver(
            rng.choice(("tcp:127.0.0.1:0", f"unix:{folder}/s")), {}, into=folder / "into", verify=parameters.digests
        )
        migration = blkmig.outgoing(disks, receiver.uri, parameters)
        timer = threading.Timer(rng.random() * 0.3, migration.cancel) if rng.random() < 0.35 else None
        is_taken = False  # by the target, and only the proof was cancelled
        if timer is not None:
            timer.start()
        try:
            with migration:
                if rng.random() < 0.2:
                    migration.switchover()
                migration.run()
        except errors.NotConverged:
            pass
        except errors.Cancelled:
            if timer is None:
                raise
        except errors.NotVerified:
            if timer is None:
                raise
            is_taken = True
        except errors.InDoubt:
            if timer is None:
                raise
            receiver.join()
            for disk in disks:
                disk.release_writers()
            return "in doubt"
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
        if migration.status != "completed":
            receiver.join()
            for disk in [] if is_taken else disks:
                assert not disk.trackers
                with disk.block_use("a test"):
                    disk.pwrite(b"still in use", 0) if disk.size >= 12 else None
            if not is_taken:
                return migration.status
        else:
            receiver.result()
        for disk in disks:
            target = (folder / "into" / f"{disk.name}.raw").read_bytes()
            assert target == disk.pread(0, disk.size), f"{disk.name} of {disk.size} bytes differs"
    return migration.status


@pytest.mark.parametrize("part", range(2))
def test_random_migrations(tmp_path: Path, part: int) -> None:
    until, ends = time.monotonic() + SECONDS / 2, []
    for number in range(10_000):
        seed = FIRST_SEED + 2 * number + part
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            ends.append(stress(seed, folder))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        if time.monotonic() > until and "completed" in ends:
            break
        for path in folder.rglob("*.raw"):
            path.unlink()
    assert "completed" in ends


@contextlib.contextmanager
def signal_storm(interval: float) -> Iterator[list[int]]:
    """Deliver SIGALRM to this process all the time; every system call may be interrupted."""
    seen = [0]

    def handler(*_: object) -> None:
        seen[0] += 1

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe"])
def test_a_storm_of_signals(tmp_path: Path, reading: str, kind: str) -> None:
    content = lab.random_disk(random.Random(5), 24 * MIB + 1536)
    with blkmig.FileBackend(lab.sparse_file(tmp_path / "s.raw", content), name="d") as disk:
        with signal_storm(0.0005) as seen, Writers([disk], 5, count=2):

            def drive(migration: blkmig.OutgoingMigration) -> None:
                while len(migration.stats.rounds) < 4 or seen[0] < 50:
                    migration.iterate()
                migration.complete()

            lab.migrate(
                tmp_path, kind, [disk], {"d": tmp_path / "t.raw"}, drive=drive, reading=reading, writers_after="refuse"
            )
        assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)
