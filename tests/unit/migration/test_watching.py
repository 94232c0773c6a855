# SPDX-License-Identifier: GPL-2.0-or-later
"""What is seen of writers, in pieces as fine as the bitmap or in whole blocks, and what a forecast makes of it."""

from __future__ import annotations

import random
from collections import Counter

import pytest

import blkmig
from blkmig import disk
from blkmig.migration import rates, watching

MIB = 1 << 20
SIZE = 5 * MIB + 70_000


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("granularity", [4096, 1 << 16, MIB])
def test_each_piece_is_counted_once_an_interval(granularity: int, whole: bool) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    backend = blkmig.MemoryBackend(bytearray(SIZE), name="d")
    known = watching.WatchedDisk(backend, backend.create_dirty_bitmap(granularity), whole=whole)
    piece = MIB if whole else granularity
    hits: Counter[int] = Counter()
    visits: Counter[int] = Counter()
    before: set[int] = set()
    for interval in range(1, 21):
        written = set()
        for _ in range(rng.randrange(6)):
            offset = rng.randrange(4 * MIB)  # before the last block, which counts its pieces from where it starts
            nbytes = rng.choice((1, 4096, 70_000))
            backend.pwrite(b"x" * nbytes, offset)
            written |= set(range(offset // piece, (min(offset + nbytes, 4 * MIB) - 1) // piece + 1))
        known.take(interval)
        hits.update(written)
        visits.update(written - before)
        before = written
    n = 4 * MIB // piece
    assert known.pieces == MIB // piece
    assert list(known.hits[:n]) == [hits[number] for number in range(n)], f"seed {seed}"
    assert list(known.visits[:n]) == [visits[number] for number in range(n)], f"seed {seed}"
    assert known.seen.count(0, n) == len(hits)
    stop = rng.randrange(n + 1)
    found = rates.kinds_of(known, 0, stop)
    assert +found == Counter(zip(known.hits[:stop], known.visits[:stop], strict=True)), f"seed {seed}"


def test_what_is_written_behind_the_cursor_waits_for_the_next_interval() -> None:
    """A writer that marks as fast as the marks are taken keeps nobody."""
    backend = blkmig.MemoryBackend(bytearray(SIZE), name="d")
    bitmap = backend.create_dirty_bitmap(4096)
    known = watching.WatchedDisk(backend, bitmap, whole=False)
    count = known.count

    def count_and_write(first: int, stop: int, interval: int) -> None:
        backend.pwrite(b"again", 0)
        count(first, stop, interval)

    known.count = count_and_write  # type: ignore[method-assign]
    backend.pwrite(b"once", 0)
    for interval in range(1, 4):
        known.take(interval)
    assert known.hits[0] == 3
    assert bitmap.count_bytes() == 4096


@pytest.mark.parametrize("whole", [True, False])
def test_pieces_that_are_written_count_as_parts_of_blocks(whole: bool) -> None:
    """64 hot pieces in each of two blocks: half a block of them, or two whole ones."""
    backend = blkmig.MemoryBackend(bytearray(8 * MIB), name="d")
    known = watching.WatchedDisk(backend, backend.create_dirty_bitmap(4096), whole=whole)
    for interval in range(1, watching.SAMPLES + 1):
        for number in range(128):
            backend.pwrite(b"x", (2 + number % 2) * MIB + number // 2 * 8192)
        known.take(interval)
    cells = rates.make_cells([known], 0.1, watching.SAMPLES)
    assert sum(cell.dirty(60.0) for cell in cells) == pytest.approx(2.0 if whole else 0.5)
    assert known.written_bytes() == (2 * MIB if whole else 128 * 4096)


def test_an_empty_watch_has_no_pieces() -> None:
    bitmap = disk.DirtyBitmap(MIB, 4096)
    known = watching.WatchedDisk(blkmig.MemoryBackend(bytearray(MIB), name="d"), bitmap, whole=False)
    known.take(1)
    assert rates.kinds_of(known, 0, 256) == Counter({(0, 0): 256})
    assert known.written_bytes() == 0
