# SPDX-License-Identifier: GPL-2.0-or-later
"""No writer causes a false alarm: disks that are proven while they are written, up to the pause and after it.

With ``--long`` it is a thousand migrations.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lab
import writer_threads

import blkmig
from blkmig import errors
from blkmig.disk import LocalBackend

MIB = lab.MIB
SIZES = (MIB, MIB + 512, 3 * MIB + 1000, 8 * MIB, 16 * MIB + 4608)
SHORT, LONG = 15, 1000


class Writers(writer_threads.WriterThreads):
    """Threads that write everywhere, 4 KiB most of the time, without a pause between two writes."""

    def __init__(self, disk: LocalBackend, seed: int, count: int) -> None:
        super().__init__(seed * 10 + number for number in range(count))
        self._disk = disk

    def write_until_stopped(self, rng: random.Random) -> None:
        data, size = rng.randbytes(1 << 17), self._disk.size
        while not self.stop.is_set():
            nbytes = min(rng.choice((512, 4096, 4096, 4096, 65536)), size)
            first = rng.randrange(len(data) - nbytes)
            try:
                self._disk.pwrite(data[first : first + nbytes], rng.randrange(size - nbytes + 1) // 512 * 512)
            except errors.DeviceError:
                return  # the disk has moved


def disk_of(rng: random.Random, tmp_path: Path) -> Any:
    """Return a disk of either kind."""
    content = lab.random_disk(rng, rng.choice(SIZES))
    if rng.random() < 0.3:
        return blkmig.MemoryBackend(bytearray(content), name="d")
    path = tmp_path / "s.raw"
    path.unlink(missing_ok=True)
    return blkmig.FileBackend(lab.sparse_file(path, content), name="d")


def test_writers_cause_no_false_alarm(tmp_path: Path, is_long: bool) -> None:
    """Each of them ends verified, at both ends; that a difference would be found is shown in test_proof.py."""
    for seed in range(LONG if is_long else SHORT):
        rng = random.Random(seed)
        target = tmp_path / "t.raw"
        target.unlink(missing_ok=True)
        receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, verify=True)
        parameters = blkmig.MigrationParameters(
            digests=True,
            writers_after=rng.choice(("release", "refuse")),
            reading=rng.choice(("inline", "parallel")),
            downtime_limit=rng.choice((0.01, 0.1, 0.3)),
            max_rounds=rng.choice((3, 10)),
        )
        with disk_of(rng, tmp_path) as disk, Writers(disk, seed, rng.choice((1, 2))):
            with blkmig.outgoing([disk], receiver.uri, parameters) as migration:
                try:
                    migration.run()
                except errors.NotConverged:  # they are faster than the rounds; the pause is longer, no more
                    migration.complete()
            assert migration.stats.verified, f"seed {seed}"
        assert receiver.result().disks["d"].verified, f"seed {seed}"
