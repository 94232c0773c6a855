# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving a disk under a writer over a link of 1 Gbit/s, against ``blockdev-mirror`` to an NBD target.

A disk of 1 GiB with 512 MiB of data; the writer changes 4 KiB or 64 KiB at random places of its first 256 MiB. The wall
time is that of the whole move. The pause counts from the writer's last acknowledged write until the target is usable.
"sent" is what the link carried, both directions and all headers, for each byte that had to be: the data, and what the
writer wrote.
"""

import functools

import pytest
from harness import images, live, network

from blkmig import gates

DOWNTIME_LIMIT = 0.3
# The bytes of one write, and bytes per second.
LOADS = [
    (4 << 10, 1_000_000),
    (4 << 10, 5_000_000),
    (64 << 10, 5_000_000),
    (64 << 10, 20_000_000),
    (64 << 10, 50_000_000),
]


@pytest.mark.skipif(live.missing() is not None, reason=str(live.missing()))
@pytest.mark.parametrize(("chunk", "rate"), LOADS)
def test_convergence(ratio, arena, chunk, rate):
    """The disk arrives although its guest writes: soon, with a short pause, and with little sent twice."""
    size = 64 * images.MiB if arena.quick else images.GiB
    load = live.Load(rate, chunk, size // 4)
    job = arena.job(arena.sparse_image(size, size // 2, piece=16 * images.MiB), link="tcp", fresh=True)
    same, image = arena.tools.program("same"), arena.folder / "live.raw"
    with network.slowed(*network.GIGABIT):
        sides = {
            name: gates.Side(
                functools.partial(measure, run, job, load, size // 2),
                setup=functools.partial(arena.prepare, job),
                check=lambda: images.require_same(same, image, job.target),
            )
            for name, run in {"blkmig": live.run_blkmig, "blockdev-mirror": live.run_mirror}.items()
        }
        group = f"1 Gbit/s, writing {rate // 1_000_000} MB/s of {chunk >> 10} KiB"
        ratio(sides, group=group, min_rounds=7, max_rounds=7, max_time=600.0)


def measure(run, job, load, data):
    """Move the disk; return the time, the pause and what was sent for each byte that had to be."""
    before = network.carried()
    figures = live.measure(run, job, load, DOWNTIME_LIMIT)
    sent = network.carried() - before
    return {"wall": figures["total"], "pause": figures["wall"], "sent": sent / (data + figures["written"])}
