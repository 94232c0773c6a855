# SPDX-License-Identifier: GPL-2.0-or-later
"""How often each block is written, from what was seen of the writers in a few seconds.

Blocks that are written at the same rate form a class. One more class holds the blocks that nobody was seen to write and
that will be written all the same: together they get as many writes as the blocks seen written once (Good and Turing).
"""

from __future__ import annotations

import math
from collections import Counter

from . import replay, watching

MAX_CELLS = 256
"""The disks are cut into so many cells at most. When the blocks of one cell are sent is not told apart."""

HOT_SHARE = 0.5
"""A block that is written in at least this part of the intervals is hot; else a writer may have passed it slowly."""

ENOUGH = 4
"""A class counts if it has so many blocks; fewer are chance."""

ALWAYS = 100.0
"""Writes per interval assumed for a block that was written in every interval: the real number cannot be seen."""


def make_cells(disks: list[watching.WatchedDisk], interval: float, count: int) -> list[replay.Cell]:
    """Cut the disks into cells, and say how often which of their blocks are written."""
    size = max(1, -(-sum(known.nblocks for known in disks) // MAX_CELLS))
    spans = [
        (known, slice(first, min(first + size, known.nblocks)))
        for known in disks
        for first in range(0, known.nblocks, size)
    ]
    kinds = [Counter(zip(known.hits[span], known.visits[span], strict=True)) for known, span in spans]
    visits = true_visits(sum((visits_of(found, count) for found in kinds), Counter()))
    cells = []
    for (known, span), found in zip(spans, kinds, strict=True):
        cell = replay.Cell(float(known.data[span].count(1)), [])
        for (hits, seen), number in found.items():
            if hits:
                is_rare = not is_hot(hits, count)
                rate = rate_of(visits[seen], interval, count) if is_rare else rate_of_hot(hits, interval, count)
                cell.classes.append((float(number), rate))
        cells.append(cell)
    add_unseen_blocks(cells, kinds, interval * count, count)
    return cells


def is_hot(hits: int, count: int) -> bool:
    """Return whether a block was written so often that no writer merely passed it."""
    return hits >= HOT_SHARE * count


def visits_of(found: Counter[tuple[int, int]], count: int) -> Counter[int]:
    """Return how many blocks that are not hot were visited how often."""
    blocks: Counter[int] = Counter()
    for (hits, visits), number in found.items():
        if hits and not is_hot(hits, count):
            blocks[visits] += number
    return blocks


def true_visits(blocks: Counter[int]) -> dict[int, float]:
    """Return, for each number of visits that was seen, how many visits such a block is likely to get in the long run.

    Blocks that were seen often were lucky in part: others of the same rate were seen less often. By Good and Turing the
    long run has (v + 1) * blocks[v + 1] / blocks[v] visits for a block that was seen v times, where there are enough of
    these blocks. Higher numbers are scaled, so that the sum of all visits stays the same, with those to blocks that
    nobody saw.
    """
    known = {visits: float(visits) for visits in blocks}
    last = 0
    while blocks[last + 1] >= ENOUGH and (blocks[last + 2] >= ENOUGH or not last):
        last += 1
        known[last] = (last + 1) * blocks[last + 1] / blocks[last]
    above = sum(visits * number for visits, number in blocks.items() if visits > last)
    if last and above:
        scale = 1 - (last + 1) * blocks[last + 1] / above
        known |= {visits: visits * scale for visits in blocks if visits > last}
    return known


def rate_of(visits: float, interval: float, count: int) -> float:
    """Return the writes a second to a block with so many visits, if they come at random.

    In an interval it is written with probability p; a row of intervals with a write begins with p * (1 - p).
    """
    share = (1 - math.sqrt(max(0.0, 1 - 4 * visits / count))) / 2
    return -math.log1p(-share) / interval


def rate_of_hot(hits: int, interval: float, count: int) -> float:
    """Return the writes a second to a block that was written in so many intervals."""
    return ALWAYS / interval if hits == count else -math.log1p(-hits / count) / interval


def add_unseen_blocks(
    cells: list[replay.Cell], kinds: list[Counter[tuple[int, int]]], seconds: float, count: int
) -> None:
    """Add the blocks that nobody was seen to write: they get as many visits as the blocks that were seen once.

    There are about singles^2 / (2 * twice) of them (Chao), or all blocks of the disks if hardly one was seen twice.
    """
    seen = [visits_of(found, count) for found in kinds]
    singles, twice = sum(blocks[1] for blocks in seen), sum(blocks[2] for blocks in seen)
    rooms = [found[0, 0] for found in kinds]
    if singles < ENOUGH or not seconds or not any(rooms):
        return
    hidden = min(float(sum(rooms)), singles * singles / (2 * twice) if twice >= ENOUGH else math.inf)
    for cell, part in zip(cells, spread(hidden, [blocks[1] for blocks in seen], rooms), strict=True):
        if part:
            cell.classes.append((part, singles / seconds / hidden))


def spread(amount: float, weights: list[int], rooms: list[int]) -> list[float]:
    """Spread `amount` by `weights`, but nowhere more than there is room; the rest goes where there is some."""
    parts = [min(amount * weight / sum(weights), float(room)) for weight, room in zip(weights, rooms, strict=True)]
    rest, left = amount - sum(parts), sum(rooms) - sum(parts)
    if rest > 0 and left > 0:
        parts = [part + (room - part) * rest / left for part, room in zip(parts, rooms, strict=True)]
    return parts
