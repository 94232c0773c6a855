# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk from file to file over TCP, a unix socket or a pipe, against everything else that can copy one.

Data is in the page cache on both sides and nothing waits for the disk (c/unflushed.c), save in the group that says so.
Every target is compared with its source after every run.
"""

import pytest
from harness import images, rounds


@pytest.mark.parametrize("fresh", [False, True], ids=["existing", "fresh"])
def test_tcp(ratio, arena, fresh):
    """2 GiB of random data over loopback TCP."""
    names = ["blkmig", "blkmig command", "C loop", "nbdcopy", "QEMU migrate"]
    more = ["C loop pages", "qemu-img convert", "blockdev-mirror", "copy_file_range", "dd"]
    names += ["cp"] if fresh else more
    compare(ratio, arena, names, "tcp", fresh=fresh)


def test_unix(ratio, arena):
    """2 GiB of random data over a unix socket."""
    compare(ratio, arena, ["blkmig", "blkmig command", "C loop", "C loop pages", "nbdcopy", "dd"], "unix")


def test_pipe(ratio, arena):
    """2 GiB of random data through a pipe."""
    compare(ratio, arena, ["blkmig", "blkmig command", "C loop", "C loop pages", "dd"], "pipe")


def compare(ratio, arena, names, link, *, fresh=False):
    source = arena.random_image(64 * images.MiB if arena.quick else 2 * images.GiB)
    job = arena.job(source, link=link, fresh=fresh)
    arena.create_target(job)
    sides, skipped = arena.sides(names, job)
    where = {"tcp": "TCP", "unix": "unix socket", "pipe": "pipe"}[link]
    group = f"2 GiB random, {where}, {'fresh' if fresh else 'existing'} target"
    ratio(sides, group=group, skipped=skipped, **rounds.UNTIL_DECIDED)


def test_flushed(ratio, arena):
    """512 MiB of random data, with everything on stable storage at the end."""
    source = arena.random_image(32 * images.MiB if arena.quick else 512 * images.MiB)
    job = arena.job(source, link="tcp", flush=True)
    arena.create_target(job)
    sides, skipped = arena.sides(["blkmig", "blkmig command", "nbdcopy", "dd"], job)
    ratio(sides, group="512 MiB random, TCP, flushed", skipped=skipped, min_rounds=9, max_rounds=9)


def test_sparse(ratio, arena):
    """16 GiB with 2 GiB of data in pieces of 16 MiB, over TCP, fresh target."""
    size, data = (images.GiB, 64 * images.MiB) if arena.quick else (16 * images.GiB, 2 * images.GiB)
    job = arena.job(arena.sparse_image(size, data, piece=16 * images.MiB), link="tcp", fresh=True)
    names = ["blkmig", "blkmig command", "C loop", "nbdcopy", "qemu-img convert", "QEMU migrate", "cp"]
    sides, skipped = arena.sides(names, job)
    ratio(sides, group="16 GiB sparse, 2 GiB of data, TCP", skipped=skipped, **rounds.UNTIL_DECIDED)
