# SPDX-License-Identifier: GPL-2.0-or-later
"""What it takes to verify: a file to a file over loopback TCP, with and without ``--verify``, and what must be done.

The last is reading both files from their storage, and BLAKE3 over them, by two threads. Nobody writes meanwhile. Where
the storage is in memory, it is not what takes the time. Other groups show the same over a link of 1 Gbit/s, and how
long the pause is under a writer, with disks of two sizes.
"""

import dataclasses
import functools
import pathlib
import shutil
import tempfile
import threading
import time

import pytest
from harness import images, inside, network

import blkmig
from blkmig.block import hashing

ALLOWANCE = 0.005
"""Seconds by which the pause of a large disk may be longer than that of a small one."""


MEMORY = pathlib.Path("/dev/shm")


def test_loopback(ratio, arena):
    """2 GiB of random data: at most three times as long, and hardly longer than what must be read and hashed."""
    ratio(sides_of(arena), group="2 GiB random, TCP, verified", min_rounds=5, max_rounds=7)


def test_memory(ratio, arena):
    """The same where the storage is as quick as memory: at most three times as long."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < 6 * images.GiB:
        pytest.skip(f"{MEMORY} is not there, or has no room for two disks")
    with tempfile.TemporaryDirectory(prefix="blkmig-bench-", dir=MEMORY) as folder:
        sides = sides_of(dataclasses.replace(arena, folder=pathlib.Path(folder)))
        ratio(sides, group="2 GiB random, TCP, verified in memory", min_rounds=5, max_rounds=7)


def test_gigabit(ratio, arena):
    """Over a link of 1 Gbit/s the proofs are made while the blocks travel."""
    source = arena.random_image((64 if arena.quick else 512) * images.MiB)
    job = arena.job(source, link="tcp")
    arena.create_target(job)
    with network.slowed(*network.GIGABIT):
        sides = {
            "verified": lambda: move(source, job.target, verify=True),
            "not verified": lambda: move(source, job.target, verify=False),
        }
        ratio(sides, group="1 Gbit/s, verified", min_rounds=7, max_rounds=7, max_time=600.0)


def test_pause(ratio, arena):
    """The pause of disks that are written at 20 MB/s while they are verified: it does not grow with the disk.

    The side with the allowance is no third disk: it is the small one, once more.
    """
    large = (64 if arena.quick else 4096) * images.MiB
    runs = {"4 GiB": written(arena, large), "64 MiB": written(arena, 64 * images.MiB)}

    def with_allowance():
        figures = runs["64 MiB"]()
        return figures | {"pause": figures["pause"] + ALLOWANCE}

    sides = {**runs, "64 MiB + 5 ms": with_allowance}
    ratio(sides, group="pause, 20 MB/s of 4 KiB, verified", min_rounds=7, max_rounds=7, max_time=600.0)


def sides_of(arena):
    """Return who copies a disk with and without proof, and who does what must be done for the proof alone."""
    source = arena.random_image(64 * images.MiB if arena.quick else 2 * images.GiB)
    job = arena.job(source, link="tcp")
    arena.create_target(job)
    return {
        "verified": lambda: move(source, job.target, verify=True),
        "not verified": lambda: move(source, job.target, verify=False),
        "read and hashed": lambda: read_and_hash(source, job.target),
    }


def written(arena, size):
    """Return what verifies a disk of its own while it is written."""
    source = arena.folder / f"written-{size}.raw"  # others want theirs as it was made
    if not source.exists():
        images.create_random(source, size)
    job = dataclasses.replace(arena.job(source, link="tcp"), target=arena.folder / f"written-{size}-target.raw")
    arena.create_target(job)
    return lambda: move(source, job.target, verify=True, rate=20e6)


def move(source, target, *, verify, rate=0.0):
    """Move a disk, and return the seconds of all of it and of its pause."""
    writer = functools.partial(inside.write, data=b"w" * 4096, rate=rate) if rate else None
    parameters = {"sending": {"digests": verify}, "receiving": {"verify": verify}}
    figures, statistics = inside.move(source, target, writer=writer, **parameters)
    assert statistics.verified == verify
    return figures


def read_and_hash(*paths):
    """Read files past the page cache and hash them, each by a thread."""

    def one(path):
        with blkmig.FileBackend(path, name="d", writable=False) as disk:
            reader = disk.open_reader(is_target=True)
            for offset in range(0, disk.size, images.MiB):
                hashing.hash_of(reader.read(offset, min(images.MiB, disk.size - offset)))
            reader.close()

    threads = [threading.Thread(target=one, args=(path,)) for path in paths]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"wall": time.monotonic() - began}
