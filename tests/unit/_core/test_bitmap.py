# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmap against a set of ints, after every operation; and against threads that set bits while others take them."""

from __future__ import annotations

import itertools
import random
import sys

import numpy as np
import pytest
from bitmap_model import walk

from blkmig import _core

GROUP_BITS = 512 * 64  # one byte of the summary
SIZES = (0, 1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513)


class Model:
    """The slow, obvious bitmap."""

    def __init__(self, nbits: int) -> None:
        self.nbits = nbits
        self.bits: set[int] = set()

    def next_set(self, start: int, stop: int) -> int:
        return next((bit for bit in range(start, stop) if bit in self.bits), -1)

    def next_clear(self, start: int, stop: int) -> int:
        return next((bit for bit in range(start, stop) if bit not in self.bits), -1)

    def next_area(self, start: int, stop: int, most: int) -> tuple[int, int] | None:
        first = self.next_set(start, stop)
        if first < 0:
            return None
        end = self.next_clear(first, stop)
        return first, min(most, (end if end >= 0 else stop) - first)

    def take_areas(self, start: int, stop: int, most: int) -> list[tuple[int, int]]:
        areas: list[tuple[int, int]] = []
        while len(areas) < most and (area := self.next_area(start, stop, self.nbits)):
            areas.append(area)
            start = sum(area)
            self.bits -= set(range(area[0], start))
        return areas


def words_of(bitmap: _core.Bitmap) -> int:
    return sum(word << 64 * index for index, word in enumerate(memoryview(bitmap).tolist()))


def check(bitmap: _core.Bitmap, model: Model) -> None:
    """All that can be derived from the bits is what the model says, the bits behind the last one included."""
    assert bitmap.count() == len(model.bits)
    assert bitmap.find_next_set() == min(model.bits, default=-1)
    assert walk(bitmap) == sorted(model.bits)
    assert words_of(bitmap) == sum(1 << bit for bit in model.bits)


@pytest.mark.parametrize("nbits", SIZES)
def test_new_is_clear(nbits: int) -> None:
    bitmap = _core.Bitmap(nbits)
    assert len(bitmap) == nbits
    assert bitmap.nbytes == (nbits + 63) // 64 * 8
    check(bitmap, Model(nbits))
    assert bitmap.find_next_clear() == (0 if nbits else -1)


@pytest.mark.parametrize("nbits", [size for size in SIZES if size])
def test_single_bits(nbits: int) -> None:
    for bit in range(nbits):
        bitmap, model = _core.Bitmap(nbits), Model(nbits)
        bitmap.set(bit)
        bitmap.set(bit)
        model.bits = {bit}
        check(bitmap, model)
        assert bitmap.test(bit)
        assert not bitmap.test((bit + 1) % nbits) or nbits == 1
        assert bitmap.take(bit)
        assert not bitmap.take(bit)
        bitmap.set(bit)
        bitmap.clear(bit)
        bitmap.clear(bit)
        check(bitmap, Model(nbits))


@pytest.mark.parametrize("nbits", [1, 64, 65, 130])
def test_every_range(nbits: int) -> None:
    """Every (start, stop) of a small map: set, count, search, take, clear."""
    for start, stop in itertools.combinations_with_replacement(range(nbits + 1), 2):
        count = stop - start
        bitmap, model = _core.Bitmap(nbits), Model(nbits)
        bitmap.set_range(start, count)
        model.bits = set(range(start, stop))
        assert words_of(bitmap) == (1 << stop) - (1 << start)
        assert bitmap.count() == bitmap.count(start, stop) == count
        assert bitmap.find_next_set() == (start if count else -1)
        assert bitmap.find_next_clear(start, stop) == -1
        assert bitmap.next_dirty_area() == ((start, count) if count else None)
        bitmap.set_range(0, nbits)
        bitmap.clear_range(start, count)
        assert words_of(bitmap) == (1 << nbits) - 1 - ((1 << stop) - (1 << start))
        assert bitmap.find_next_clear() == (start if count else -1)
        assert bitmap.find_next_set(start, stop) == -1
        assert not bitmap.take_range(start, count)
        assert bitmap.take_range(0, nbits) == (count < nbits)
        assert words_of(bitmap) == 0


WALKS = [*SIZES, 4000, GROUP_BITS - 1, GROUP_BITS, GROUP_BITS + 1, 3 * GROUP_BITS + 77]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("nbits", [size for size in WALKS if size])
def test_random_walk(nbits: int, seed: int) -> None:
    """Any operations in any order, with searches from any place to any place after each."""
    rnd = random.Random(f"{nbits} {seed}")
    bitmap, model = _core.Bitmap(nbits), Model(nbits)
    for step in range(60):
        start = rnd.randrange(nbits)
        count = rnd.randint(0, min(nbits - start, rnd.choice((1, 3, 70, 1000, nbits))))
        bits = set(range(start, start + count))
        operation = rnd.choice(
            ("set", "clear", "take", "set_range", "set_range", "clear_range", "take_range", "merge", "areas")
        )
        where = (seed, step, operation, start, count)
        if operation == "set":
            bitmap.set(start)
            model.bits.add(start)
        elif operation == "clear":
            bitmap.clear(start)
            model.bits.discard(start)
        elif operation == "take":
            assert bitmap.take(start) == (start in model.bits), where
            model.bits.discard(start)
        elif operation == "set_range":
            bitmap.set_range(start, count)
            model.bits |= bits
        elif operation == "clear_range":
            bitmap.clear_range(start, count)
            model.bits -= bits
        elif operation == "take_range":
            assert bitmap.take_range(start, count) == bool(model.bits & bits), where
            model.bits -= bits
        elif operation == "areas":
            most = rnd.choice((1, 2, 64, nbits))
            taken = bitmap.take_areas(start, start + count, most)
            assert taken == model.take_areas(start, start + count, most), where
        else:
            other = _core.Bitmap(nbits)
            other.set_range(start, count)
            bitmap.merge(other)
            model.bits |= bits
            assert other.count() == count, where
        stop = rnd.randint(start, nbits)
        most = rnd.choice((1, 2, 63, 64, 65, nbits))
        assert bitmap.count(start, stop) == sum(start <= bit < stop for bit in model.bits), where
        assert bitmap.find_next_set(start, stop) == model.next_set(start, stop), where
        assert bitmap.find_next_clear(start, stop) == model.next_clear(start, stop), where
        assert bitmap.next_dirty_area(start, stop, most) == model.next_area(start, stop, most), where
        if step % 10 == 0:
            check(bitmap, model)
    check(bitmap, model)


def test_every_pattern_is_taken_as_areas() -> None:
    """All patterns of 7 bits, astride two words, from every place to every place, in lists of every length."""
    nbits, first = 80, 61
    bitmap, model = _core.Bitmap(nbits), Model(nbits)
    for pattern, most in itertools.product(range(1 << 7), (1, 2, 3, 5)):
        bits = {first + i for i in range(7) if pattern >> i & 1}
        for start, stop in itertools.combinations_with_replacement(range(first - 1, first + 9), 2):
            bitmap.clear_range(0, nbits)
            for bit in bits:
                bitmap.set(bit)
            model.bits = set(bits)
            assert bitmap.take_areas(start, stop, most) == model.take_areas(start, stop, most), (pattern, start, stop)
            assert words_of(bitmap) == sum(1 << bit for bit in model.bits)


@pytest.mark.parametrize("most", [1, 63, 64, 65, 128, 150, 151, 5000])
def test_areas_come_in_lists_of_bounded_length(most: int) -> None:
    """150 areas in a map that is searched without the GIL: each list is full but the last."""
    bitmap = _core.Bitmap(40 * GROUP_BITS)
    areas = [(i * 8 * 1024, 1 + i * 50) for i in range(150)]
    for start, count in areas:
        bitmap.set_range(start, count)
    lists = []
    while taken := bitmap.take_areas(max_areas=most):
        lists.append(taken)
    assert list(itertools.chain(*lists)) == areas
    assert {len(each) for each in lists[:-1]} <= {most}
    assert len(lists[-1]) <= most
    assert bitmap.count() == 0


def test_one_area_may_be_everything() -> None:
    bitmap = _core.Bitmap(3 * GROUP_BITS + 1)
    bitmap.set_range(0, len(bitmap))
    assert bitmap.take_areas() == [(0, len(bitmap))]
    assert bitmap.take_areas() == []


def test_areas_that_cannot_be_returned_stay_set() -> None:
    """Out of memory at every place where it can be."""
    testcapi = pytest.importorskip("_testcapi", reason="this Python comes without _testcapi")
    failures = 0
    for allocation in range(400):
        bitmap = _core.Bitmap(GROUP_BITS)
        for start in range(0, GROUP_BITS, 256):
            bitmap.set_range(start, 7)
        areas = []
        testcapi.set_nomemory(allocation, allocation + 1)
        try:
            areas = bitmap.take_areas(max_areas=100)
        except MemoryError:
            failures += 1
        finally:
            testcapi.remove_mem_hooks()
        assert bitmap.count() + sum(count for _, count in areas) == 7 * 128
    assert failures


@pytest.mark.parametrize("nbits", [1, 64, 65, GROUP_BITS + 5, 20 * GROUP_BITS])
def test_take_into(nbits: int) -> None:
    rnd = random.Random(nbits)
    source, target = _core.Bitmap(nbits), _core.Bitmap(nbits)
    mine = {rnd.randrange(nbits) for _ in range(200)}
    theirs = {rnd.randrange(nbits) for _ in range(200)}
    for bit in mine:
        source.set(bit)
    for bit in theirs:
        target.set(bit)
    assert source.take_into(target) == len(mine)
    assert walk(source) == []
    assert walk(target) == sorted(mine | theirs)
    assert source.take_into(target) == 0


def test_two_maps_must_match() -> None:
    bitmap = _core.Bitmap(64)
    for operation in (bitmap.merge, bitmap.take_into):
        with pytest.raises(ValueError, match="differ in length: 64 and 65 bits"):
            operation(_core.Bitmap(65))
        with pytest.raises(TypeError):
            operation(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="into itself"):
        bitmap.take_into(bitmap)
    bitmap.set(3)
    bitmap.merge(bitmap)
    assert walk(bitmap) == [3]


@pytest.mark.parametrize("nbits", [0, 1, 64, 100])
def test_outside(nbits: int) -> None:
    bitmap = _core.Bitmap(nbits)
    for bit in (-1, nbits, nbits + 1, sys.maxsize, -sys.maxsize - 1):
        for operation in (bitmap.set, bitmap.clear, bitmap.test, bitmap.take):
            with pytest.raises(IndexError):
                operation(bit)
    for start, count in ((-1, 1), (0, nbits + 1), (nbits, 1), (nbits + 1, 0), (1, sys.maxsize), (0, -1), (nbits, -1)):
        for ranged in (bitmap.set_range, bitmap.clear_range, bitmap.take_range):
            with pytest.raises(IndexError):
                ranged(start, count)
    for start, stop in ((-1, None), (nbits + 1, None), (0, nbits + 1), (0, -1)):
        for search in (
            bitmap.count,
            bitmap.find_next_set,
            bitmap.find_next_clear,
            bitmap.next_dirty_area,
            bitmap.take_areas,
        ):
            with pytest.raises(IndexError):
                search(start, stop)
    assert bitmap.count() == 0


def test_empty_and_backward_ranges_hold_nothing() -> None:
    bitmap = _core.Bitmap(100)
    bitmap.set_range(0, 100)
    assert bitmap.find_next_set(100) == bitmap.find_next_set(50, 50) == bitmap.find_next_set(60, 50) == -1
    assert bitmap.find_next_clear(60, 50) == -1
    assert bitmap.count(60, 50) == 0
    assert bitmap.next_dirty_area(60, 50) is None
    assert bitmap.take_areas(60, 50) == []
    for search, most in itertools.product((bitmap.next_dirty_area, bitmap.take_areas), (0, -1)):
        with pytest.raises(ValueError, match="at least 1"):
            search(0, 100, most)
    assert bitmap.count() == 100


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="-1 bits"):
        _core.Bitmap(-1)
    with pytest.raises(MemoryError):
        _core.Bitmap(sys.maxsize)
    with pytest.raises(OverflowError):
        _core.Bitmap(sys.maxsize + 1)


def test_a_disk_of_2_to_the_50_bytes() -> None:
    """2^30 bits: searches, counts and moves pass over what is empty."""
    bitmap, target = _core.Bitmap(1 << 30), _core.Bitmap(1 << 30)
    bits = sorted(random.Random(1).sample(range(1 << 30), 16))
    for bit in bits:
        bitmap.set(bit)
    assert walk(bitmap) == bits
    assert bitmap.count() == 16
    assert bitmap.take_into(target) == 16
    assert walk(bitmap) == []
    assert walk(target) == bits


def test_words_are_shared_with_numpy() -> None:
    bitmap = _core.Bitmap(3 * GROUP_BITS)
    words = np.asarray(bitmap)
    assert words.dtype == np.uint64
    assert words.shape == (bitmap.nbytes // 8,)
    bitmap.set(70)
    assert words[1] == 1 << 6
    words[2] = 5
    assert walk(bitmap) == [70, 128, 130]
    view = memoryview(bitmap)
    assert (view.format, view.itemsize, view.ndim, view.readonly) == ("L", 8, 1, False)
    assert view.strides == (8,)
    assert memoryview(view).cast("B").nbytes == bitmap.nbytes
    assert bytes(bitmap) == words.tobytes()


def test_searches_see_what_was_written_through_a_view() -> None:
    """The summary knows nothing of it: while the view lives it is not used, and then it is built again."""
    bitmap = _core.Bitmap(8 * GROUP_BITS)
    bitmap.set_range(0, len(bitmap))
    bitmap.clear_range(0, len(bitmap))
    assert bitmap.find_next_set() == -1
    words = np.frombuffer(bitmap, np.uint64)
    words[3 * 512] = 1
    assert bitmap.find_next_set() == 3 * GROUP_BITS
    words[6 * 512 + 511] = 1 << 63
    assert walk(bitmap) == [3 * GROUP_BITS, 7 * GROUP_BITS - 1]
    assert bitmap.count() == 2
    del words
    assert walk(bitmap) == [3 * GROUP_BITS, 7 * GROUP_BITS - 1]
    other = _core.Bitmap(len(bitmap))
    np.frombuffer(other, np.uint64)[5 * 512] = 2
    other.merge(bitmap)
    assert bitmap.take_into(other) == 2
    np.frombuffer(bitmap, np.uint64)[4 * 512] = 6
    assert bitmap.take_areas() == [(4 * GROUP_BITS + 1, 2)]
    assert walk(other) == [3 * GROUP_BITS, 5 * GROUP_BITS + 1, 7 * GROUP_BITS - 1]


def test_empty_map_has_an_empty_view() -> None:
    assert memoryview(_core.Bitmap(0)).tolist() == []
