# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration would take, before anything is sent: the writers are watched for a few seconds.

In each of some short intervals the marks are taken, so that it is known of each block how often it was written. From
that come classes of blocks that are written at the same rate, and of blocks that nobody was seen to write, but that
somebody will: as many writes as go to blocks that were seen once are to blocks that were not seen (Good and Turing).
With these the migration is played through (`replay.py`).

What cannot be known is the link. Its speed is what the caller says, or `max_bandwidth`, or the speed of the disks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable

from .. import _core, disk, errors, params, units
from . import replay

SAMPLES = 20
PROBE_SECONDS = 0.5

MAX_CELLS = 256
"""Into so many pieces the disks are cut: what a migration does between two of them is not told apart."""

HOT_SHARE = 0.5
"""A block that is written in more of the intervals is hot, and not one that a writer passes slowly."""

ENOUGH = 4
"""So many blocks of a kind make it one; fewer are chance."""

ALWAYS = 100.0
"""Writes in an interval to a block that was written in each of them: how many, nobody knows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """A prediction; sizes in bytes, times in seconds, rates in bytes per second."""

    disk_bytes: int
    data_bytes: int
    """What bulk would send: whole blocks that are not holes."""

    bandwidth: float
    """What the link was taken to carry."""

    dirty_rate: float
    """Different blocks dirtied per second, over the whole time of watching."""

    rounds: int
    total_bytes: int
    total_time: float
    downtime: float
    converges: bool
    """Whether the last pass fits the downtime limit; if not, the figures are those of the round that is steady."""


def forecast(
    disks: Iterable[disk.BlockBackend],
    parameters: params.MigrationParameters,
    *,
    seconds: float = 3.0,
    bandwidth: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Forecast:
    """Watch the writers of `disks` for `seconds` and return what a migration with `parameters` would take. Blocks.

    `bandwidth` is what the link carries; None takes `max_bandwidth`, or else the speed at which the disks are read. The
    disks are in use meanwhile, and as they were afterwards. Raises :class:`~blkmig.errors.DeviceError`.
    """
    seconds = units.number("seconds", seconds)
    bandwidth = None if bandwidth is None else units.number("bandwidth", bandwidth)
    sent = [backend for backend in disks if not backend.is_read_only and backend.size]
    with contextlib.ExitStack() as stack:
        watched = []
        for backend in sent:
            stack.enter_context(backend.block_use("a forecast"))
            bitmap = backend.create_dirty_bitmap(int(parameters.granularity))
            stack.callback(backend.release_dirty_bitmap, bitmap)
            watched.append(WatchedDisk(backend, bitmap))
        interval, count = watch(watched, seconds, clock, sleep)
        for known in watched:
            known.find_data()
        link = bandwidth or float(parameters.max_bandwidth) or read_speed(sent, clock)
    if link <= 0:
        raise errors.ParameterError("there is nothing to measure the bandwidth with: say it")
    speed = min(link, float(parameters.max_bandwidth) or link)
    played = replay.Replay(
        make_cells(watched, interval, count),
        parameters,
        speed=speed / _core.BLOCK_SIZE,
        link_speed=link / _core.BLOCK_SIZE,
    )
    played.run()
    dirtied = sum(known.count_written() for known in watched)
    return Forecast(
        disk_bytes=sum(backend.size for backend in sent),
        data_bytes=sum(known.count_data() for known in watched) * _core.BLOCK_SIZE,
        bandwidth=link,
        dirty_rate=dirtied * _core.BLOCK_SIZE / (interval * count) if interval else 0.0,
        rounds=played.rounds,
        total_bytes=int(played.sent * _core.BLOCK_SIZE),
        total_time=played.now,
        downtime=played.downtime,
        converges=played.converges,
    )


class WatchedDisk:
    """What was seen of one disk; a byte for each of its blocks in each of the tables."""

    def __init__(self, backend: disk.BlockBackend, bitmap: disk.DirtyBitmap) -> None:
        self.backend = backend
        self._bitmap = bitmap
        self.nblocks = bitmap.nblocks
        self.hits = bytearray(self.nblocks)
        """Intervals in which a block was written."""

        self.visits = bytearray(self.nblocks)
        """The same, but intervals in a row count as one: a writer that passes slowly visits each block once."""

        self._last_hit = bytearray(self.nblocks)
        self.data = bytearray(self.nblocks)
        """1 for a block that is not wholly in holes."""

    def take(self, interval: int) -> None:
        """Count the blocks that were written in interval number `interval`, from 1 on."""
        block = self._bitmap.next_dirty(0)
        while block >= 0:
            self._bitmap.take_block(block)
            self.hits[block] += 1
            if self._last_hit[block] != interval - 1 or interval == 1:
                self.visits[block] += 1
            self._last_hit[block] = interval
            block = self._bitmap.next_dirty(block + 1)

    def find_data(self) -> None:
        """Look for the blocks that are not wholly in holes."""
        offset = 0
        while (extent := self.backend.next_data(offset)) is not None:
            first, stop = extent[0] // _core.BLOCK_SIZE, min(-(-extent[1] // _core.BLOCK_SIZE), self.nblocks)
            self.data[first:stop] = b"\1" * (stop - first)
            offset = extent[1]

    def count_data(self) -> int:
        """Return how many blocks bulk would send."""
        return self.data.count(1)

    def count_written(self) -> int:
        """Return how many blocks were written while it was watched."""
        return self.nblocks - self.hits.count(0)


def watch(
    disks: list[WatchedDisk], seconds: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[float, int]:
    """Watch the writers; return the length of an interval by mean, and the number of intervals."""
    started = clock()
    for interval in range(1, SAMPLES + 1):
        sleep(seconds / SAMPLES)
        disk.sync_disks([known.backend for known in disks])
        for known in disks:
            known.take(interval)
    return (clock() - started) / SAMPLES, SAMPLES


# -- rates -------------------------------------------------------------------------------------------------------------


def make_cells(disks: list[WatchedDisk], interval: float, count: int) -> list[replay.Cell]:
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
    """Return, for each number of visits that was seen, how many are likely to be the rule.

    Who was seen twice had luck: a part of those that were seen once is as good. By Good and Turing the rule is
    (v + 1) * blocks[v + 1] / blocks[v], where there are enough of them; what is above that is scaled, so that all the
    visits together stay what they are, those to blocks that nobody saw included.
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
    """Add the blocks that nobody was seen to write: as many visits go to them as went to blocks that were seen once.

    There are about singles^2 / (2 * twice) of them (Chao), all others if hardly one was seen twice.
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


# -- speed -------------------------------------------------------------------------------------------------------------


def read_speed(disks: list[disk.BlockBackend], clock: Callable[[], float]) -> float:
    """Return how fast data is read: the most that a migration could do."""
    buf, started, nbytes = _core.BlockBuffer(), clock(), 0
    for backend in disks:
        offset = 0
        while (extent := backend.next_data(offset)) is not None and clock() - started < PROBE_SECONDS:
            piece = min(_core.BLOCK_SIZE, extent[1] - extent[0])
            try:
                backend.read_block(buf, extent[0], piece)
            except OSError as error:
                raise errors.DeviceError("cannot read", device=backend.name, cause=error, offset=extent[0]) from error
            nbytes, offset = nbytes + piece, extent[0] + piece
    elapsed = clock() - started
    return nbytes / elapsed if elapsed > 0 else 0.0
