# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressing (``--compress=auto``) against sending the same disk as it is, over links of several speeds.

On a link of 1 Gbit/s that leads to another address: data that zstd halves, random data, and both in turn, each MiB. On
one of 10 Gbit/s, and on the loopback, where nothing should be lost. The side *as it is* is blkmig, too, with
``--compress=off``. Both ends are processes on this machine, and share its processors.
"""

import functools
import shutil

import pytest
from harness import images, inside, network, peers, processes, rounds

SIZE = 512 * images.MiB
FEW = {"min_rounds": 5, "max_rounds": 7, "max_time": 300.0}
RATE = 80e6
"""Bytes a second that the writer of the pause writes."""

ALLOWANCE = 0.001
"""Seconds by which the pause may be longer."""

KINDS = ["halves", "random", "alternating"]


@pytest.mark.parametrize("kind", KINDS)
def test_gigabit(ratio, arena, kind):
    """A link that is slower than zstd."""
    with network.slowed(*network.GIGABIT):
        compare(ratio, arena, kind, "far", f"{kind}, 1 Gbit/s, compressed", **FEW)


@pytest.mark.parametrize("kind", ["halves", "random"])
def test_ten_gigabit(ratio, arena, kind):
    """A link that is about as fast as this machine."""
    with network.slowed(*network.TEN_GIGABIT):
        compare(ratio, arena, kind, "far", f"{kind}, 10 Gbit/s, compressed", **FEW)


def test_loopback(ratio, arena):
    """A link that does not leave the machine."""
    compare(ratio, arena, "halves", "tcp", "halves, loopback, compressed", **rounds.UNTIL_DECIDED)


def test_pause(ratio, arena):
    """The pause over 1 Gbit/s, of a disk that is written with data that zstd halves, 64 KiB at a time.

    It is some hundred microseconds, and as much from one run to the next: hence the side with the allowance.
    """
    size = (32 if arena.quick else 256) * images.MiB
    source = arena.text_image(size, every=1)
    image = arena.folder / "written-text.raw"  # others want theirs as it was made
    shutil.copyfile(source, image)
    writer = functools.partial(inside.write, data=source.read_bytes()[: 64 << 10], rate=RATE)
    with network.slowed(*network.GIGABIT):

        def run_one(chosen):
            figures, _ = inside.move(
                image,
                arena.folder / "written-text-target.raw",
                uri=f"tcp:{processes.FAR}:0",
                sending={"compress": chosen, "downtime_limit": 0.05},
                receiving={"insecure": True},
                writer=writer,
            )
            return figures

        def with_allowance():
            figures = run_one("off")
            return figures | {"pause": figures["pause"] + ALLOWANCE}

        sides = {
            "blkmig": lambda: run_one("auto"),
            "as it is": lambda: run_one("off"),
            "as it is + 1 ms": with_allowance,
        }
        ratio(sides, group="pause, 1 Gbit/s, compressed", min_rounds=9, max_rounds=14, max_time=300.0)


def compare(ratio, arena, kind, link, group, **until):
    """Send the same image with and without, in turns."""
    size = 32 * images.MiB if arena.quick else SIZE
    image = arena.random_image(size) if kind == "random" else arena.text_image(size, every=1 if kind == "halves" else 2)
    job = arena.job(image, link=link)
    arena.create_target(job)
    sides = {
        name: arena.side_of(job, functools.partial(peers.run_blkmig, job, send={"compress": chosen}))
        for name, chosen in {"blkmig": "auto", "as it is": "off"}.items()
    }
    ratio(sides, group=group, **until)
