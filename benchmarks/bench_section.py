# SPDX-License-Identifier: GPL-2.0-or-later
"""What the section ``blkmig`` and its barriers cost: blkmig against itself with QEMU's section, or without barriers.

The sections are compared over the loopback, where nothing else takes long. Barriers have the target flushed while it is
written, so they are compared where both sides wait for the disk at the end, over links that take several seconds: about
four barriers at 1 Gbit/s, and three at 10. On the loopback a disk has arrived before the first is due.
"""

import functools

import pytest
from harness import images, network, peers, rounds

FEW = {"min_rounds": 9, "max_rounds": 14, "max_time": 300.0}

QEMUS_SECTION = {"QEMU's section": {"format": "block"}}
NO_BARRIERS = {"no barriers": {"without": "barriers"}}
"""A name, and parameters of the sender."""

LINKS = {
    "1 Gbit/s": (network.GIGABIT, 512 * images.MiB),
    "10 Gbit/s": (network.TEN_GIGABIT, 4 * images.GiB),
}


@pytest.mark.parametrize("link", ["TCP", "unix socket"])
def test_section(ratio, arena, link):
    """2 GiB of random data, nobody writes: the bulk phase alone."""
    job = job_of(arena, 2 * images.GiB, link="tcp" if link == "TCP" else "unix")
    against(ratio, arena, job, QEMUS_SECTION, group=f"2 GiB random, {link}, sections", **rounds.UNTIL_DECIDED)


@pytest.mark.parametrize("link", LINKS)
def test_barriers(ratio, arena, link):
    """What is sent is acknowledged while the migration goes on; everything is on stable storage at the end."""
    qdisc, size = LINKS[link]
    job = job_of(arena, size, link="far", flush=True)
    with network.slowed(*qdisc):
        against(ratio, arena, job, NO_BARRIERS, group=f"{link}, flushed, barriers", **FEW)


def test_barriers_loopback(ratio, arena):
    """Less than a second: keeping what is sent until it is acknowledged, for barriers that never come."""
    job = job_of(arena, 2 * images.GiB, link="tcp")
    against(ratio, arena, job, NO_BARRIERS, group="2 GiB random, TCP, barriers", **rounds.UNTIL_DECIDED)


def job_of(arena, size, **options):
    job = arena.job(arena.random_image(32 * images.MiB if arena.quick else size), **options)
    arena.create_target(job)
    return job


def against(ratio, arena, job, other, **options):
    """Do the job as blkmig does it by itself, and with other parameters of the sender, in turns."""
    sides = {
        name: arena.side_of(job, functools.partial(peers.run_blkmig, job, send=send))
        for name, send in ({"blkmig": {}} | other).items()
    }
    ratio(sides, **options)
