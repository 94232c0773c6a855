# SPDX-License-Identifier: GPL-2.0-or-later
"""Bits counted by groups, and long ranges taken: what a bitmap finer than a block needs."""

from __future__ import annotations

import itertools
import random
import threading

import pytest
from bitmap_model import walk

from blkmig import _core

GROUP_BITS = 512 * 64  # one byte of the summary


def rounded(bits: set[int], group: int, enough: int, start: int, stop: int) -> int:
    """Return what the groups of a set of bits count."""
    counts = [len(bits & set(range(first, first + group))) for first in range(start, stop, group)]
    return sum(group if count >= enough else count for count in counts)


@pytest.mark.parametrize("group", [1 << shift for shift in range(13)])
def test_groups_are_counted_whole_from_enough_on(group: int) -> None:
    """Sparse and dense groups, from and to any group; a view of the words keeps the summary from being used."""
    rnd = random.Random(group)
    ngroups = max(3, 9000 // group)
    bitmap, bits = _core.Bitmap(ngroups * group), set()
    for _ in range(ngroups // 2):
        first = rnd.randrange(ngroups) * group
        for bit in rnd.sample(range(first, first + group), rnd.randint(1, group)):
            bitmap.set(bit)
            bits.add(bit)
    for _ in range(20):
        start, stop = sorted(rnd.choices(range(ngroups + 1), k=2))
        start, stop = start * group, stop * group
        for enough in {1, max(1, group * 3 // 4), group, group + 1}:
            expected = rounded(bits, group, enough, start, stop)
            assert bitmap.count_rounded(group, enough, start, stop) == expected, (enough, start, stop)
            with memoryview(bitmap):
                assert bitmap.count_rounded(group, enough, start, stop) == expected
    assert bitmap.count_rounded(group, group + 1) == bitmap.count() == len(bits)


def test_groups_of_a_large_map() -> None:
    """Long enough to be counted without the GIL, with empty regions that are passed over."""
    bitmap = _core.Bitmap(200 * GROUP_BITS)
    for group in (0, 1, 150 * GROUP_BITS // 256, 200 * GROUP_BITS // 256 - 1):
        bitmap.set_range(group * 256 + 3, 200)
        bitmap.set(group * 256 + 255)
    assert bitmap.count_rounded(256, 1) == 4 * 256
    assert bitmap.count_rounded(256, 201) == 4 * 256
    assert bitmap.count_rounded(256, 202) == 4 * 201
    assert bitmap.count_rounded(256, 1, 256, 150 * GROUP_BITS) == 256


def test_a_take_passes_over_what_is_empty() -> None:
    bitmap = _core.Bitmap(200 * GROUP_BITS)
    assert not bitmap.take_range(3, 199 * GROUP_BITS)
    for bit in (2, 3, 5 * GROUP_BITS, 150 * GROUP_BITS + 77, 199 * GROUP_BITS + 2, 199 * GROUP_BITS + 3):
        bitmap.set(bit)
    assert bitmap.take_range(3, 199 * GROUP_BITS)
    assert walk(bitmap) == [2, 199 * GROUP_BITS + 3]
    assert not bitmap.take_range(3, 199 * GROUP_BITS)


@pytest.mark.parametrize(
    ("group", "enough", "start", "stop"),
    [(0, 1, 0, 64), (3, 1, 0, 64), (8192, 1, 0, 64), (-4, 1, 0, 64), (4, 0, 0, 64), (4, 1, 2, 64), (4, 1, 0, 63)],
)
def test_groups_that_make_no_sense(group: int, enough: int, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=r"group|multiples"):
        _core.Bitmap(64).count_rounded(group, enough, start, stop)
    with pytest.raises(IndexError):
        _core.Bitmap(64).count_rounded(4, 1, 0, 65)


def test_a_range_is_taken_if_enough_of_it_is_set() -> None:
    for enough, others in itertools.product(range(6), (False, True)):
        bits = _core.Bitmap(200)
        for bit in (60, 63, 64, 70, *((59, 71) if others else ())):
            bits.set(bit)
        assert bits.take_range_if(60, 11, enough) is (enough <= 4)
        assert bits.count() == (0 if enough <= 4 else 4) + 2 * others
    with pytest.raises(IndexError):
        _core.Bitmap(10).take_range_if(5, 6, 1)


def test_a_take_leaves_no_bit_behind_that_was_set_before() -> None:
    """Setters and searches change the summary meanwhile; the words themselves tell what is left."""
    nbits = 200 * GROUP_BITS  # so much is taken without the GIL
    bitmap, rnd = _core.Bitmap(nbits), random.Random(1)
    bits = [rnd.sample(range(nbits), 5000) for _ in range(2)]

    def set_bits(mine: list[int]) -> None:
        for bit in mine:
            bitmap.set(bit)

    def search() -> None:
        while any(thread.is_alive() for thread in setters):
            bitmap.find_next_set(rnd.randrange(nbits))

    setters = [threading.Thread(target=set_bits, args=(mine,)) for mine in bits]
    threads = [*setters, threading.Thread(target=search)]
    for thread in threads:
        thread.start()
    taken = 0
    while any(thread.is_alive() for thread in setters):
        taken += bitmap.take_range(0, nbits)
    for thread in threads:
        thread.join()
    taken += bitmap.take_range(0, nbits)
    assert taken
    assert not any(memoryview(bitmap).tobytes())
    assert bitmap.count_rounded(256, 1) == 0
