# SPDX-License-Identifier: GPL-2.0-or-later
"""A13: statements about bases: what goes in comes out, and what is damaged, or no blkmig says, is refused."""

from __future__ import annotations

import pickle
import random
import struct
import zlib

import pytest

from blkmig import errors
from blkmig.block import basewords, sizes, wire

MIB = 1 << 20
NAMES = [b"d", "ü".encode(), b"\xff" * 255]
NBLOCKS = 5000
MARKS = wire.description_marks(len(NAMES), 0)
Run = basewords.BaseRun


def said_sizes() -> sizes.SaidSizes:
    said = sizes.SaidSizes()
    for word in sizes.say([(name, NBLOCKS * MIB - 5) for name in NAMES]):
        said.take(int.from_bytes(word, "big") >> 9, most=len(NAMES), position=7)
    return said


def some_runs(count: int) -> list[Run]:
    rng = random.Random(count)
    places = sorted(rng.sample(range(NBLOCKS), 2 * count))
    return [Run(first, stop - first, rng.randbytes(16)) for first, stop in zip(places[::2], places[1::2], strict=True)]


def hear(words: list[bytes], base: basewords.SaidBase | None = None) -> list[tuple[str, list[Run]]]:
    base, said, found = base or basewords.SaidBase(), said_sizes(), []
    for word in words:
        marks = int.from_bytes(word, "big") >> 9
        statement = base.take(marks >> wire.BASE_SHIFT, said, position=7)
        found += [] if statement is None else [statement]
    assert base.is_whole
    return found


@pytest.mark.parametrize("count", [1, 2, 255, 256, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_is_heard(name: bytes, count: int) -> None:
    runs = some_runs(count)
    words = basewords.say(MARKS, name, runs)
    for word in words:
        value = int.from_bytes(word, "big")
        assert value & 511 == 2, "a QEMU must see no more than EOS"
        assert value >> 9 & (1 << 22) - 1 == MARKS, "and a blkmig that knows no statements the first one again"
        assert word[0] != 0x7E, "which takes this for the footer of a source that could not read"
    found = hear(words)
    assert {heard for heard, _ in found} == {name.decode("utf-8", "surrogateescape")}
    assert [run for _, some in found for run in some] == runs
    assert all(len(some) <= 255 for _, some in found)


def test_a_disk_that_is_only_named() -> None:
    assert hear(basewords.say(MARKS, b"d", [])) == [("d", [])]


@pytest.mark.parametrize(
    "runs",
    [
        [(4, 2), (5, 1)],
        [(4, 2), (3, 1)],
        [(4, 2), (4, 2)],
        [(4, 0)],
        [(NBLOCKS, 1)],
        [(NBLOCKS - 1, 2)],
        [(0, (1 << 32) - 1)],
    ],
    ids=str,
)
def test_runs_that_cannot_be(runs: list[tuple[int, int]]) -> None:
    """A13: overlapping ones, in the wrong order, without a block, past the end of the disk."""
    text = struct.pack(">BB", 1, len(runs)) + b"d" + b"".join(struct.pack(">II16s", *run, b"") for run in runs)
    with pytest.raises(errors.StreamError, match="damaged"):
        hear(words_of(text))


def words_of(text: bytes) -> list[bytes]:
    text += bytes(-len(text) % 4)
    text += struct.pack(">I", zlib.crc32(text))
    pieces = [int.from_bytes(text[place : place + 4], "big") for place in range(0, len(text), 4)]
    marks = [(piece | 1 << 32) << 22 | MARKS for piece in pieces]
    return [(mark << 9 | 2).to_bytes(8, "big") for mark in marks]


def test_runs_of_a_disk_go_on_where_they_were() -> None:
    """A13: a block is said once, in whatever statement; the disks do not disturb each other."""
    base, digest = basewords.SaidBase(), bytes(16)
    for name, first, is_right in ((b"d", 5, True), (NAMES[1], 5, True), (b"d", 6, False), (b"d", 7, True)):
        words = basewords.say(MARKS, name, [Run(first, 2, digest)])
        if is_right:
            hear(words, base)
        else:
            with pytest.raises(errors.StreamError, match="damaged"):
                hear(words, base)
    with pytest.raises(errors.StreamError, match="damaged"):
        hear(basewords.say(MARKS, b"nobody", [Run(1, 1, digest)]), base)


def test_every_bit_of_a_statement() -> None:
    """A13: a bit that flips is noticed as damage, at the latest by the word that does not come."""
    words = basewords.say(MARKS, b"d", some_runs(3))
    for number, word in enumerate(words):
        for bit in range(31, 64):
            damaged = (int.from_bytes(word, "big") ^ 1 << bit).to_bytes(8, "big")
            with pytest.raises((errors.StreamError, AssertionError)):
                hear([*words[:number], damaged, *words[number + 1 :]])


def test_words_that_are_lost_or_come_twice() -> None:
    words = basewords.say(MARKS, b"d", some_runs(3))
    for number, word in enumerate(words):
        for changed in (words[:number] + words[number + 1 :], [*words[:number], word, *words[number:]]):
            with pytest.raises((errors.StreamError, AssertionError)):
                hear(changed)


def test_what_is_kept_of_a_disk_does_not_grow() -> None:
    """A13: the receiver keeps one number for each disk, whatever is said."""
    base = basewords.SaidBase()
    for run in some_runs(1000):
        hear(basewords.say(MARKS, b"d", [run]), base)
    assert len(pickle.dumps(base)) < 200
