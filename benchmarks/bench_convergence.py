# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving a disk under a writer over a link of 1 Gbit/s, against ``blockdev-mirror`` to an NBD target.

A disk of 1 GiB with 512 MiB of data; the writer changes 4 KiB or 64 KiB at random places of its first 256 MiB. The wall
time is that of the whole move. The pause counts from the writer's last acknowledged write until the target is usable.
"sent" is what the link carried, both directions and all headers, for each byte that had to be: the data, and what the
writer wrote. The side *data alone* is no program: the time of the data at the speed of the line, each byte sent once.

Over the loopback the side *what is promised* is none either, but the promise itself.
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
# The same over the loopback, and the longest pause in seconds, which is the downtime limit, too.
QUICK_LOADS = [(64 << 10, 100_000_000, 0.05), (4 << 10, 20_000_000, 0.02)]
QUICK_SECONDS = 3.0


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
        line = {"wall": size // 2 * 8 / network.GIGABIT_SPEED, "sent": 1.0}
        sides["data alone"] = gates.Side(lambda: line)
        group = f"1 Gbit/s, writing {rate // 1_000_000} MB/s of {chunk >> 10} KiB"
        ratio(sides, group=group, min_rounds=7, max_rounds=7, max_time=600.0)


@pytest.mark.skipif(live.missing() is not None, reason=str(live.missing()))
@pytest.mark.parametrize(("chunk", "rate", "pause"), QUICK_LOADS)
def test_loopback(ratio, arena, chunk, rate, pause):
    """A link that is much quicker than the writer: 1 GiB is there soon, and the writer hardly stands still."""
    size = 64 * images.MiB if arena.quick else images.GiB
    job = arena.job(arena.random_image(size), link="tcp", fresh=True)
    limit = 1.0 if arena.quick else pause
    same, image = arena.tools.program("same"), arena.folder / "live.raw"

    def run():
        figures = live.measure(live.run_blkmig, job, live.Load(rate, chunk, size), limit)
        return {"wall": figures["total"], "pause": figures["wall"]}

    promised = {"wall": QUICK_SECONDS, "pause": pause}
    sides = {
        "blkmig": gates.Side(
            run,
            setup=functools.partial(arena.prepare, job),
            check=lambda: images.require_same(same, image, job.target),
        ),
        "what is promised": gates.Side(lambda: promised),
    }
    ratio(sides, group=f"loopback, writing {rate // 1_000_000} MB/s of {chunk >> 10} KiB", min_rounds=7, max_rounds=7)


def measure(run, job, load, data):
    """Move the disk; return the time, the pause and what was sent for each byte that had to be."""
    before = network.carried()
    figures = live.measure(run, job, load, DOWNTIME_LIMIT)
    sent = network.carried() - before
    return {"wall": figures["total"], "pause": figures["wall"], "sent": sent / (data + figures["written"])}
