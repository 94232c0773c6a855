# SPDX-License-Identifier: GPL-2.0-or-later
"""A map of each disk: where its data is, where it has none, and what was sent again, by heat."""

from __future__ import annotations

import itertools

from .. import diskmap
from . import svg

CSS = ("c-ahead", "c-empty", "c-data", "c-heat1", "c-heat2", "c-heat3", "c-heat4")
"""How the looks of a cell are painted."""

LEGEND = [
    ("c-data", "data"),
    ("c-empty", "nothing to send"),
    ("c-ahead", "not reached"),
    ("c-heat1", "sent again: a part"),
    ("c-heat2", "up to once"),
    ("c-heat3", "4 times"),
    ("c-heat4", "more"),
]

MANY_DISKS, FEW_CELLS = 32, 128
"""Of many disks each has a coarser map, so that the page stays small."""


def disk_map(found: diskmap.DiskMap, nblocks: int, *, is_one_of_many: bool) -> str:
    """Return the strip of one disk, of which the bulk phase has passed so many blocks; of one that came, which has
    so many."""
    looks = list(found.looks(nblocks))
    if is_one_of_many:
        looks = diskmap.coarser(looks, FEW_CELLS)
    runs, first = [], 0
    for look, group in itertools.groupby(looks):
        count = len(list(group))
        runs.append((first, count, CSS[look]))
        first += count
    return svg.picture(svg.cells(runs, max(len(looks), 1)), "map of the disk", css="map")
