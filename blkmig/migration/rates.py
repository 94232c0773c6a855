# SPDX-License-Identifier: GPL-2.0-or-later
"""How often each piece of a disk is written, from what was seen of the writers in a few seconds.

Pieces that are written at the same rate form a class. One more class holds those that nobody was seen to write and that
will be written all the same: together they get as many writes as those seen written once (Good and Turing). Pieces are
counted here, blocks in the cells: where a write costs a block, a piece is one.
"""

from __future__ import annotations

import math
from collections import Counter

from . import filling, replay, watching

MAX_CELLS = 256
"""The disks are cut into so many cells at most. When the blocks of one cell are sent is not told apart."""

HOT_SHARE = 0.5
"""A piece that is written in at least this part of the intervals is hot; else a writer may have passed it slowly."""

ENOUGH = 4
"""A class counts if it has so many pieces; fewer are chance."""

ALWAYS = 100.0
"""Writes per interval assumed for a piece that was written in every interval: the real number cannot be seen."""


def make_cells(disks: list[watching.WatchedDisk], interval: float, count: int) -> list[replay.Cell]:
    """Cut the disks into cells, and say how often which of their blocks are written."""
    size = max(1, -(-sum(known.nblocks for known in disks) // MAX_CELLS))
    spans = [
        (known, slice(first, min(first + size, known.nblocks)))
        for known in disks
        for first in range(0, known.nblocks, size)
    ]
    kinds = [kinds_of(known, span.start * known.pieces, span.stop * known.pieces) for known, span in spans]
    visits = true_visits(sum((visits_of(found, count) for found in kinds), Counter()))
    cells = []
    for (known, span), found in zip(spans, kinds, strict=True):
        cell = replay.Cell(float(known.data[span].count(1)), [], filling=filling_of(known, span, found))
        for (hits, seen), number in found.items():
            if hits:
                is_rare = not is_hot(hits, count)
                rate = rate_of(visits[seen], interval, count) if is_rare else rate_of_hot(hits, interval, count)
                cell.classes.append((number / known.pieces, rate))
        cells.append(cell)
    add_unseen_pieces(cells, [known.pieces for known, _ in spans], kinds, interval * count, count)
    return cells


def kinds_of(known: watching.WatchedDisk, first: int, stop: int) -> Counter[tuple[int, int]]:
    """Return how many of the pieces [first, stop) have how many hits and visits, those that have none included."""
    found: Counter[tuple[int, int]] = Counter()
    piece = first
    while (area := known.seen.next_dirty_area(piece, stop)) is not None:
        piece = sum(area)
        run = slice(area[0], piece)
        found.update(zip(known.hits[run], known.visits[run], strict=True))
    found[0, 0] = stop - first - found.total()
    return found


def filling_of(known: watching.WatchedDisk, span: slice, found: Counter[tuple[int, int]]) -> filling.Filling:
    """Return how the blocks of `span` fill with dirty pieces, of which `found` says how often they were hit."""
    touched = known.touched[span]
    pieces = sum(hits * number for (hits, _), number in found.items())
    return filling.Filling(len(touched) - touched.count(0), pieces / (sum(touched) * known.pieces) if pieces else 1.0)


def is_hot(hits: int, count: int) -> bool:
    """Return whether a piece was written so often that no writer merely passed it."""
    return hits >= HOT_SHARE * count


def visits_of(found: Counter[tuple[int, int]], count: int) -> Counter[int]:
    """Return how many pieces that are not hot were visited how often."""
    pieces: Counter[int] = Counter()
    for (hits, visits), number in found.items():
        if hits and not is_hot(hits, count):
            pieces[visits] += number
    return pieces


def true_visits(pieces: Counter[int]) -> dict[int, float]:
    """Return, for each number of visits that was seen, how many visits such a piece is likely to get in the long run.

    Pieces that were seen often were lucky in part: others of the same rate were seen less often. By Good and Turing the
    long run has (v + 1) * pieces[v + 1] / pieces[v] visits for a piece that was seen v times, where there are enough of
    these. Higher numbers are scaled, so that the sum of all visits stays the same, with those to pieces nobody saw.
    """
    known = {visits: float(visits) for visits in pieces}
    last = 0
    while pieces[last + 1] >= ENOUGH and (pieces[last + 2] >= ENOUGH or not last):
        last += 1
        known[last] = (last + 1) * pieces[last + 1] / pieces[last]
    above = sum(visits * number for visits, number in pieces.items() if visits > last)
    if last and above:
        scale = 1 - (last + 1) * pieces[last + 1] / above
        known |= {visits: visits * scale for visits in pieces if visits > last}
    return known


def rate_of(visits: float, interval: float, count: int) -> float:
    """Return the writes a second to a piece with so many visits, if they come at random.

    In an interval it is written with probability p; a row of intervals with a write begins with p * (1 - p).
    """
    share = (1 - math.sqrt(max(0.0, 1 - 4 * visits / count))) / 2
    return -math.log1p(-share) / interval


def rate_of_hot(hits: int, interval: float, count: int) -> float:
    """Return the writes a second to a piece that was written in so many intervals."""
    return ALWAYS / interval if hits == count else -math.log1p(-hits / count) / interval


def add_unseen_pieces(
    cells: list[replay.Cell],
    pieces: list[int],
    kinds: list[Counter[tuple[int, int]]],
    seconds: float,
    count: int,
) -> None:
    """Add the pieces that nobody was seen to write: they get as many visits as those that were seen once.

    There are about singles^2 / (2 * twice) of them (Chao), or all of the disks if hardly one was seen twice. `pieces`
    says for each cell how many pieces a block of it has.
    """
    seen = [visits_of(found, count) for found in kinds]
    singles, twice = sum(found[1] for found in seen), sum(found[2] for found in seen)
    rooms = [found[0, 0] for found in kinds]
    if singles < ENOUGH or not seconds or not any(rooms):
        return
    hidden = min(float(sum(rooms)), singles * singles / (2 * twice) if twice >= ENOUGH else math.inf)
    parts = spread(hidden, [found[1] for found in seen], rooms)
    for cell, part, of_block in zip(cells, parts, pieces, strict=True):
        if part:
            cell.classes.append((part / of_block, singles / seconds / hidden))


def spread(amount: float, weights: list[int], rooms: list[int]) -> list[float]:
    """Spread `amount` by `weights`, but nowhere more than there is room; the rest goes where there is some."""
    parts = [min(amount * weight / sum(weights), float(room)) for weight, room in zip(weights, rooms, strict=True)]
    rest, left = amount - sum(parts), sum(rooms) - sum(parts)
    if rest > 0 and left > 0:
        parts = [part + (room - part) * rest / left for part, room in zip(parts, rooms, strict=True)]
    return parts
