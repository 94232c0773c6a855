# SPDX-License-Identifier: GPL-2.0-or-later
"""A map of each disk: where its data is, where it has none, and what was sent again, by heat."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from .. import diskmap, units
from . import svg

HEAT = (0.25, 1.0, 4.0)
"""How many times as much as a cell has was sent again, up to each degree of heat."""

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


def disk_map(found: diskmap.DiskMap, passed_blocks: int, *, is_one_of_many: bool) -> str:
    """Return the strip of one disk, of which the bulk phase has passed so many blocks."""
    looks = list(_looks(found, passed_blocks))
    if is_one_of_many and len(looks) > FEW_CELLS:
        each = -(-len(looks) // FEW_CELLS)
        looks = [max(looks[first : first + each]) for first in range(0, len(looks), each)]
    runs, first = [], 0
    for css, group in itertools.groupby(looks):
        count = len(list(group))
        runs.append((first, count, css[1:]))
        first += count
    return svg.picture(svg.cells(runs, max(len(looks), 1)), "map of the disk", css="map")


def _looks(found: diskmap.DiskMap, passed_blocks: int) -> Iterator[str]:
    """Yield how each cell looks, after a digit that says which look wins where several cells become one."""
    for cell, (empty, again) in enumerate(zip(found.empty, found.again, strict=True)):
        nblocks = found.cell_blocks(cell)
        if again:
            degree = 1 + sum(again / (nblocks * units.MiB) > most for most in HEAT)
            yield f"{2 + degree}c-heat{degree}"
        elif cell * found.blocks_per_cell >= passed_blocks:
            yield "0c-ahead"
        else:
            yield "1c-empty" if empty >= nblocks else "2c-data"
