# SPDX-License-Identifier: GPL-2.0-or-later
"""Downtime and total time of moving a disk under a steady writer, against ``blockdev-mirror`` to an NBD target.

The wall time of this comparison is the downtime: from the writer's last acknowledged write until the target is usable.
"""

import functools

import pytest
from harness import images, live

from blkmig import gates

DOWNTIME_LIMIT = 0.05  # seconds; a mirror has none, it is always as close as it gets
LOADS = {"20 MB/s of 64 KiB": (20_000_000, 64 << 10), "100 MB/s of 64 KiB": (100_000_000, 64 << 10)}


@pytest.mark.skipif(live.missing() is not None, reason=str(live.missing()))
@pytest.mark.parametrize("what", LOADS)
def test_downtime(ratio, arena, what):
    """The writer stands still for no longer than with a mirror, and both targets are equal to their sources."""
    size = 64 * images.MiB if arena.quick else images.GiB
    job = arena.job(arena.random_image(size), link="unix", fresh=True)
    load = live.Load(*LOADS[what], area=size)
    same = arena.tools.program("same")
    image = arena.folder / "live.raw"
    sides = {
        name: gates.Side(
            functools.partial(live.measure, run, job, load, DOWNTIME_LIMIT),
            setup=functools.partial(arena.prepare, job),
            check=lambda: images.require_same(same, image, job.target),
        )
        for name, run in {"blkmig": live.run_blkmig, "blockdev-mirror": live.run_mirror}.items()
    }
    ratio(sides, group=f"downtime, {what}, 1 GiB", min_rounds=8, max_rounds=8)
