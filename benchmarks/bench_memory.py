# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is bounded: the peak RSS of each side, whatever the size of the disk."""

from harness import images

LIMIT = 60 * images.MiB


def test_peak_rss(ratio, arena):
    """Neither a large disk nor a large sparse one needs more than a small one."""
    small, large = (16 * images.MiB, 64 * images.MiB) if arena.quick else (64 * images.MiB, 2 * images.GiB)
    sparse = (64 * images.GiB, 32 * images.MiB) if arena.quick else (images.TiB, images.GiB)
    sources = {
        "small disk": arena.random_image(small),
        "large disk": arena.random_image(large),
        "1 TiB, sparse": arena.sparse_image(*sparse, piece=images.MiB),
    }
    sides = {}
    for link in ("tcp", "unix"):
        for what, source in sources.items():
            sides[f"{what}, {link}"] = arena.side("blkmig command", arena.job(source, link=link, fresh=True))
    result = ratio(sides, group="peak RSS of blkmig", min_rounds=1, max_rounds=1)
    for side in sides:
        for end in ("rss_sender", "rss_receiver"):
            peak = result.median(side, end)
            assert peak <= LIMIT, f"{side}: {end} {peak / images.MiB:.0f} MiB, at most {LIMIT / images.MiB:.0f} MiB"
