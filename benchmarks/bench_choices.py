# SPDX-License-Identifier: GPL-2.0-or-later
"""What blkmig chose to do, against itself doing otherwise."""

import pytest
from harness import images, rounds

CHOICES = {
    "reading a file in the page cache, TCP": ("parallel reads", "tcp"),
    "storing behind, TCP": ("nothing stored behind", "tcp"),
    "storing behind, unix socket": ("nothing stored behind", "unix"),
    "storing behind, pipe": ("nothing stored behind", "pipe"),
    "rate limit and progress, off, unix socket": ("no rate limit or progress", "unix"),
    "early writeback, TCP, flushed": ("no early writeback", "tcp"),
}


@pytest.mark.parametrize("group", CHOICES)
def test_choice(ratio, arena, group):
    """A file of random data to an existing target; flushed, it takes a disk's time, so there is less of it."""
    other, link = CHOICES[group]
    is_flushed = "flushed" in group
    size = 64 * images.MiB if arena.quick else (512 * images.MiB if is_flushed else 2 * images.GiB)
    job = arena.job(arena.random_image(size), link=link, flush=is_flushed)
    arena.create_target(job)
    sides, skipped = arena.sides(["blkmig", other], job)
    ratio(sides, group=group, skipped=skipped, **rounds.UNTIL_DECIDED)
