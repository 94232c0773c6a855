# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressing (``--compress=auto``) against sending the same disk as it is, over links of several speeds.

On a link of 1 Gbit/s that leads to another address: data that zstd halves, random data, and both in turn, each MiB. On
one of 10 Gbit/s, and on the loopback, where nothing should be lost. The side *as it is* is blkmig, too, with
``--compress=off``. Both ends are processes on this machine, and share its processors.
"""

import pytest
from harness import images, jobs, network

SIZE = 512 * images.MiB
KINDS = ["halves", "random", "alternating"]


@pytest.mark.parametrize("kind", KINDS)
def test_gigabit(ratio, arena, kind):
    """A link that is slower than zstd."""
    with network.slowed(*network.GIGABIT):
        compare(ratio, arena, kind, "far", f"{kind}, 1 Gbit/s, compressed")


@pytest.mark.parametrize("kind", ["halves", "random"])
def test_ten_gigabit(ratio, arena, kind):
    """A link that is about as fast as this machine."""
    with network.slowed(*network.TEN_GIGABIT):
        compare(ratio, arena, kind, "far", f"{kind}, 10 Gbit/s, compressed")


def test_loopback(ratio, arena):
    """A link that does not leave the machine."""
    compare(ratio, arena, "halves", "tcp", "halves, loopback, compressed")


def compare(ratio, arena, kind, link, group):
    """Send the same image with and without, in turns."""
    size = 32 * images.MiB if arena.quick else SIZE
    image = arena.random_image(size) if kind == "random" else arena.text_image(size, every=1 if kind == "halves" else 2)
    job = arena.job(image, link=link)
    arena.create_target(job)
    sides = {
        name: arena.side_of(job, lambda chosen=chosen: run(job, chosen))
        for name, chosen in {"blkmig": "auto", "as it is": "off"}.items()
    }
    ratio(sides, group=group, min_rounds=5, max_rounds=7, max_time=300.0)


def run(job, chosen):
    """Migrate in two processes that have imported blkmig already."""
    with jobs.started(job, (f"drive0={job.source}", {"compress": chosen}), (f"drive0={job.target}", {})) as ends:
        return ends.run()
