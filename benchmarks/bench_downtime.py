# SPDX-License-Identifier: GPL-2.0-or-later
"""Downtime and total time of moving a disk under a steady writer, against ``blockdev-mirror`` to an NBD target.

The wall time of this comparison is the downtime, from the moment when the writer was cut off until the target is
usable.
"""

import dataclasses
import functools

import pytest
from harness import images, live, rounds

from blkmig import gates

# What the writer does, and blkmig's downtime limit in seconds; a mirror has none, it is always as close as it gets.
LOADS = {
    "20 MB/s in 1 GiB": (live.Load(20_000_000, 64 << 10, images.GiB), 0.02),
    "100 MB/s in 1 GiB": (live.Load(100_000_000, 64 << 10, images.GiB), 0.05),
    "100 MB/s in 64 MiB": (live.Load(100_000_000, 64 << 10, 64 * images.MiB), 0.05),
}


@pytest.mark.skipif(live.missing() is not None, reason=str(live.missing()))
@pytest.mark.parametrize("what", LOADS)
def test_downtime(ratio, arena, what):
    """The writer stands still for no longer than with a mirror, and both targets are equal to their sources."""
    size = 64 * images.MiB if arena.quick else images.GiB
    job = arena.job(arena.random_image(size), link="unix", fresh=True)
    load, downtime_limit = LOADS[what]
    if arena.quick:
        load, downtime_limit = dataclasses.replace(load, area=size), 1.0
    same = arena.tools.program("same")
    image = arena.folder / "live.raw"
    sides = {
        name: gates.Side(
            functools.partial(live.measure, run, job, load, downtime_limit),
            setup=functools.partial(arena.prepare, job),
            check=lambda: images.require_same(same, image, job.target),
        )
        for name, run in {"blkmig": live.run_blkmig, "blockdev-mirror": live.run_mirror}.items()
    }
    ratio(sides, group=f"downtime, writing {what}", **rounds.UNTIL_DECIDED)
