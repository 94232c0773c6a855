# SPDX-License-Identifier: GPL-2.0-or-later
"""What blkmig chose to do, against itself doing otherwise."""

import pytest
from harness import images, rounds

CHOICES = {
    "parallel reads": "reading a file in the page cache, TCP",
    "nothing stored behind": "storing behind, TCP",
    "no rate limit or progress": "rate limit and progress, off, TCP",
    "no early writeback": "early writeback, TCP, flushed",
}


@pytest.mark.parametrize("other", CHOICES)
def test_choice(ratio, arena, other):
    """A file of random data to an existing target; flushed, it takes a disk's time, so there is less of it."""
    is_flushed = "flushed" in CHOICES[other]
    size = 64 * images.MiB if arena.quick else (512 * images.MiB if is_flushed else 2 * images.GiB)
    job = arena.job(arena.random_image(size), link="tcp", flush=is_flushed)
    arena.create_target(job)
    sides, skipped = arena.sides(["blkmig", other], job)
    ratio(sides, group=CHOICES[other], skipped=skipped, **rounds.UNTIL_DECIDED)
