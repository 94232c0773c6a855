# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmap against bitarray and numpy: single bits, searches, counts, runs collected and cleared, merges."""

from __future__ import annotations

import random
import timeit

import numpy as np
import pytest

from blkmig import _core, gates

bitarray = pytest.importorskip("bitarray", reason="bitarray not installed (pip install bitarray)")
SIZES = [pytest.param(1 << 20, id="2^20"), pytest.param(1 << 24, id="2^24")]


class Maps:
    """The same bits three times."""

    def __init__(self, nbits, bits=()):
        self.ours, self.bitarray = _core.Bitmap(nbits), bitarray.bitarray(nbits)
        self.bitarray.setall(0)
        for bit in bits:
            self.ours.set(bit)
            self.bitarray[bit] = 1
        self.numpy = np.frombuffer(bytes(self.ours), np.uint64).copy()  # a view of ours would switch its summary off


def name(nbits):
    return f"2^{nbits.bit_length() - 1} bits"


def some(nbits, count):
    return sorted(random.Random(nbits).sample(range(nbits), count))


@pytest.mark.parametrize("verb", ["set", "test"])
def test_single_bit(ratio, verb):
    maps = Maps(1 << 20)
    names = {"ours": getattr(maps.ours, verb), "theirs": maps.bitarray, "bits": range(0, 1 << 20, 997)}
    theirs = {"set": "theirs[bit] = 1", "test": "theirs[bit]"}[verb]
    ratio(
        {
            "blkmig": timeit.Timer("for bit in bits: ours(bit)", globals=names),
            "bitarray": timeit.Timer(f"for bit in bits: {theirs}", globals=names),
        },
        group=f"bitmap, {verb} one bit",
    )


def visit_ours(bitmap):
    find, bit, count = bitmap.find_next_set, bitmap.find_next_set(), 0
    while bit >= 0:
        count += 1
        bit = find(bit + 1)
    return count


def visit_bitarray(bits):
    find, bit, count = bits.find, bits.find(1), 0
    while bit >= 0:
        count += 1
        bit = find(1, bit + 1)
    return count


def visit_numpy(words):
    (dirty,) = words.nonzero()
    return sum(int(word).bit_count() for word in words[dirty])


@pytest.mark.parametrize("nbits", SIZES)
def test_visit(ratio, nbits):
    """1,024 dirty bits."""
    maps = Maps(nbits, some(nbits, 1024))
    assert visit_ours(maps.ours) == visit_bitarray(maps.bitarray) == visit_numpy(maps.numpy) == 1024
    ratio(
        {
            "blkmig": lambda: visit_ours(maps.ours),
            "bitarray": lambda: visit_bitarray(maps.bitarray),
            "numpy": lambda: visit_numpy(maps.numpy),
        },
        group=f"bitmap, visit 1,024 of {name(nbits)}",
    )


def test_visit_few_of_many(ratio):
    """16 dirty bits of 2^30, a disk of 1 PiB: what the summary is for."""
    nbits = 1 << (24 if ratio.quick else 30)
    maps = Maps(nbits, some(nbits, 16))
    ratio(
        {"blkmig": lambda: visit_ours(maps.ours), "bitarray": lambda: visit_bitarray(maps.bitarray)},
        group="bitmap, visit 16 of 2^30 bits",
    )


@pytest.mark.parametrize("nbits", SIZES)
def test_scan(ratio, nbits):
    """A full map for a clear bit: every word is looked at, by both."""
    maps = Maps(nbits)
    maps.ours.set_range(0, nbits)
    maps.bitarray.setall(1)
    ratio(
        {"blkmig": maps.ours.find_next_clear, "bitarray": lambda: maps.bitarray.find(0)},
        group=f"bitmap, scan {name(nbits)}",
    )


@pytest.mark.parametrize("nbits", SIZES)
def test_count(ratio, nbits):
    """Every second bit is set: there is nothing to pass over."""
    maps = Maps(nbits)
    np.asarray(maps.ours)[:] = 0x5555555555555555
    maps.bitarray[::2] = 1
    maps.numpy[:] = 0x5555555555555555
    assert maps.ours.count() == maps.bitarray.count() == int(np.bitwise_count(maps.numpy).sum()) == nbits // 2
    ratio(
        {
            "blkmig": maps.ours.count,
            "bitarray": maps.bitarray.count,
            "numpy": lambda: np.bitwise_count(maps.numpy).sum(),
        },
        group=f"bitmap, count {name(nbits)}",
    )


def collect_ours(bitmap):
    count = 0
    while areas := bitmap.take_areas():
        for _start, _length in areas:
            count += 1
    return count


def collect_one_by_one(bitmap):
    area, clear, start, count = bitmap.next_dirty_area, bitmap.clear_range, 0, 0
    while (found := area(start)) is not None:
        start, length = found
        clear(start, length)
        start += length
        count += 1
    return count


def collect_bitarray(bits):
    find, start, count = bits.find, 0, 0
    while (start := find(1, start)) >= 0:
        end = find(0, start)
        end = len(bits) if end < 0 else end
        bits[start:end] = 0
        start = end
        count += 1
    return count


def test_collect_and_clear(ratio):
    """10,000 runs of 20 bits in 2^24: each side sees start and length of every run."""
    starts = sorted(random.Random(3).sample(range(0, 1 << 24, 64), 10_000))
    maps = Maps(1 << 24, (bit for start in starts for bit in range(start, start + 20)))
    work = Maps(1 << 24)

    def again():
        work.ours.merge(maps.ours)
        work.bitarray[:] = maps.bitarray

    ratio(
        {
            "blkmig": gates.Side(lambda: collect_ours(work.ours), setup=again),
            "bitarray": gates.Side(lambda: collect_bitarray(work.bitarray), setup=again),
            "one by one": gates.Side(lambda: collect_one_by_one(work.ours), setup=again),
        },
        group="bitmap, collect and clear 10,000 runs",
    )
    again()
    assert collect_one_by_one(work.ours) == 10_000
    assert collect_ours(maps.ours) == collect_bitarray(maps.bitarray) == 10_000


@pytest.mark.parametrize("nbits", SIZES)
def test_merge(ratio, nbits):
    """1,024 dirty bits into a map that has others: what one round of a migration does."""
    maps, into = Maps(nbits, some(nbits, 1024)), Maps(nbits, some(nbits - 1, 1024))

    def theirs():
        into.bitarray |= maps.bitarray

    def numpy():
        into.numpy |= maps.numpy

    ratio(
        {"blkmig": lambda: into.ours.merge(maps.ours), "bitarray": theirs, "numpy": numpy},
        group=f"bitmap, merge {name(nbits)}",
    )
