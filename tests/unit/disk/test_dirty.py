# SPDX-License-Identifier: GPL-2.0-or-later
"""The dirty bitmap against a set of blocks."""

import random
import threading

import pytest

from blkmig import errors
from blkmig.disk import dirty

MiB = 1 << 20
GRANULARITIES = [1 << shift for shift in range(12, 21)]
SIZES = [1, 512, 70_000, MiB - 512, MiB, MiB + 512, 3 * MiB, 5 * MiB + 123_456]


def dirty_blocks(bitmap: dirty.DirtyBitmap) -> set[int]:
    """Return the marked blocks, in the way that a migration finds them."""
    blocks, block = set(), bitmap.next_dirty(0)
    while block >= 0:
        blocks.add(block)
        block = bitmap.next_dirty(block + 1)
    return blocks


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("size", SIZES)
def test_marks_are_those_of_the_blocks_that_cover_the_write(size, granularity):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    bitmap, model = dirty.DirtyBitmap(size, granularity), set()
    for step in range(300):
        what = rng.random()
        if what < 0.5:
            offset = rng.randrange(size)
            nbytes = rng.choice((1, 512, granularity, rng.randrange(1, size + 1)))
            bitmap.mark(offset, nbytes)
            model |= set(bitmap.geometry.blocks_covering(offset, nbytes))
        elif what < 0.9:
            block = rng.randrange(bitmap.nblocks)
            assert bitmap.take_block(block) == (block in model), f"seed {seed}, step {step}"
            model.discard(block)
        else:
            start, stop = sorted(rng.choices(range(bitmap.nblocks + 1), k=2))
            marked = not model.isdisjoint(range(start, stop))
            assert bitmap.take_blocks(start, stop - start) == marked, f"seed {seed}, step {step}"
            model -= set(range(start, stop))
        assert dirty_blocks(bitmap) == model, f"seed {seed}, step {step}"
        assert bitmap.count_blocks() == len(model), f"seed {seed}, step {step}"
        assert [bitmap.is_dirty(block) for block in range(bitmap.nblocks)] == [
            block in model for block in range(bitmap.nblocks)
        ], f"seed {seed}, step {step}"


def test_a_fine_bitmap_sets_only_the_bits_of_the_chunks_written():
    bitmap = dirty.DirtyBitmap(4 * MiB, 65536)
    bitmap.mark(MiB + 65536, 65536 * 2 + 1)
    assert bitmap.bits.count() == 3
    assert bitmap.bits.next_dirty_area() == (17, 3)
    bitmap.mark_block(3)
    assert bitmap.bits.count() == 19
    bitmap.mark_all()
    assert bitmap.bits.count() == 64
    assert bitmap.count_blocks() == 4


def bytes_of(areas) -> int:
    """Return areas as a number with a bit for each of their bytes."""
    covered = 0
    for offset, nbytes in areas:
        covered |= ((1 << nbytes) - 1) << offset
    return covered


@pytest.mark.parametrize("granularity", [1 << 12, 1 << 16, 1 << 20])
@pytest.mark.parametrize("size", SIZES)
def test_areas_are_the_chunks_that_the_writes_touched(size, granularity):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    bitmap = dirty.DirtyBitmap(size, granularity)
    for step in range(30):
        chunks = set()
        for _ in range(rng.randrange(1, 6)):
            offset = rng.randrange(size)
            nbytes = rng.choice((1, 512, granularity + 1, rng.randrange(1, size + 1)))
            bitmap.mark(offset, nbytes)
            for start, length in map(bitmap.block_range, bitmap.geometry.blocks_covering(offset, nbytes)):
                for chunk in range(start, start + length, granularity):
                    if offset < chunk + granularity and chunk < offset + nbytes:
                        chunks.add((chunk, bitmap.geometry.clip(chunk, granularity)))
        most, taken = rng.choice((1, 2, 256)), []
        while areas := bitmap.take_areas(most):
            assert len(areas) <= most
            taken += areas
        assert bytes_of(taken) == bytes_of(chunks), f"seed {seed}, step {step}"
        assert all(nbytes > 0 and offset + nbytes <= size for offset, nbytes in taken)
        assert dirty_blocks(bitmap) == set()


def test_areas_of_whole_disks():
    assert dirty.DirtyBitmap(0).take_areas() == []
    bitmap = dirty.DirtyBitmap(5 * MiB + 7, 65536)
    bitmap.mark_all()
    assert bitmap.take_areas() == [(0, 5 * MiB), (bitmap.geometry.last_offset, MiB - 505)]
    bitmap = dirty.DirtyBitmap(70_000, 65536)
    bitmap.mark_block(0)
    assert bitmap.take_areas() == [(0, 70_000)]


def test_a_write_to_the_overlap_marks_both_blocks():
    bitmap = dirty.DirtyBitmap(2 * MiB + 512, 65536)
    assert bitmap.block_range(2) == (MiB + 512, MiB)
    bitmap.mark(2 * MiB - 1, 1)
    assert dirty_blocks(bitmap) == {1, 2}
    assert bitmap.take_block(1)
    assert dirty_blocks(bitmap) == {2}  # taking one leaves the other's mark alone
    bitmap.mark(MiB, 512)
    assert dirty_blocks(bitmap) == {1, 2}
    bitmap.take_block(2)
    bitmap.mark(2 * MiB, 512)
    assert dirty_blocks(bitmap) == {1, 2}


def test_marks_outside_the_disk_are_ignored():
    bitmap = dirty.DirtyBitmap(2 * MiB)
    for offset, nbytes in ((2 * MiB, 5), (5 * MiB, 1), (-10, 10), (7, 0), (100, -5)):
        bitmap.mark(offset, nbytes)
    assert bitmap.count_blocks() == 0
    bitmap.mark(-10, 11)
    assert dirty_blocks(bitmap) == {0}
    bitmap.mark(2 * MiB - 1, 1 << 60)
    assert dirty_blocks(bitmap) == {0, 1}


def test_merge():
    first, second = dirty.DirtyBitmap(3 * MiB), dirty.DirtyBitmap(3 * MiB)
    first.mark_block(0)
    second.mark_block(2)
    first.merge(second)
    assert dirty_blocks(first) == {0, 2}
    assert dirty_blocks(second) == {2}
    for other in (dirty.DirtyBitmap(3 * MiB, 65536), dirty.DirtyBitmap(4 * MiB)):
        with pytest.raises(ValueError, match="same size and granularity"):
            first.merge(other)


def test_an_empty_disk():
    bitmap = dirty.DirtyBitmap(0)
    bitmap.mark(0, 100)
    bitmap.mark_all()
    assert bitmap.next_dirty(0) == -1
    assert bitmap.count_blocks() == 0


@pytest.mark.parametrize("granularity", [0, 1, 512, 2048, 65537, 3 << 16, 2 * MiB, -65536])
def test_granularities_that_make_no_sense(granularity):
    with pytest.raises(errors.ParameterError, match="power of two from 4K to 1M"):
        dirty.DirtyBitmap(MiB, granularity)


@pytest.mark.parametrize("granularity", [4096, 65536, MiB])
def test_no_mark_is_lost_between_threads(granularity):
    """Each writer counts up a cell of its own and marks; the reader takes, then reads, and sees all counts."""
    nblocks, writers, rounds = 64, 4, 3000
    bitmap = dirty.DirtyBitmap(nblocks * MiB, granularity)
    cells = [[0] * nblocks for _ in range(writers)]
    running = threading.Semaphore(0)

    def write(mine: list[int], seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(rounds):
            block = rng.randrange(nblocks)
            mine[block] += 1
            bitmap.mark(block * MiB + rng.randrange(MiB), 1)
        running.release()

    seed = random.randrange(1 << 32)
    threads = [threading.Thread(target=write, args=(cells[n], seed + n)) for n in range(writers)]
    seen = [[0] * nblocks for _ in range(writers)]

    def read_dirty() -> None:
        block = bitmap.next_dirty(0)
        while block >= 0:
            if bitmap.take_block(block):
                for mine, copy in zip(cells, seen, strict=True):
                    copy[block] = mine[block]
            block = bitmap.next_dirty(block + 1)

    for thread in threads:
        thread.start()
    finished = 0
    while finished < writers:
        finished += running.acquire(blocking=False)
        read_dirty()
    for thread in threads:
        thread.join()
    read_dirty()
    assert seen == cells, f"seed {seed}"
    assert bitmap.count_blocks() == 0
