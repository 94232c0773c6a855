# SPDX-License-Identifier: GPL-2.0-or-later
"""1 TiB that is nearly empty: 1 GiB of data scattered in pieces of 1 MiB, and the same data without the holes."""

from harness import images, rounds


def test_terabyte(ratio, arena):
    """The holes of a million blocks cost next to nothing, and everybody else is slower."""
    size, data = (64 * images.GiB, 32 * images.MiB) if arena.quick else (images.TiB, images.GiB)
    job = arena.job(arena.sparse_image(size, data, piece=images.MiB), link="tcp", fresh=True)
    names = ["blkmig", "blkmig command", "C loop", "nbdcopy", "qemu-img convert", "cp --sparse"]
    sides, skipped = arena.sides(names, job)
    dense = arena.job(arena.random_image(data), link="tcp", fresh=True)
    sides["blkmig dense"] = arena.side("blkmig", dense)
    ratio(sides, group="1 TiB sparse, 1 GiB of data, TCP", skipped=skipped, **rounds.UNTIL_DECIDED)
