# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding the end of device state, whose sections do not say how long they are."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc

import pytest
import savevm_streams as streams

from blkmig.savevm import vmdescription

DECOYS = [
    b"\0\6",
    b"\0\6\0",
    b"\0\6\0\0\0\2{}",
    b"\0\6\0\0\0\2{}" * 3,
    b"\0\6\0\0\0\x10{ ",
    b'\0\6\0\0\1\0{"page_size"',
    b"\0\6\0\xff\xff\xff{}",
    b"\0\6\xff\xff\xff\xff{}",
    b"\0\0\6\0\0\0\2{x",
    b"\0\6\0\6\0\0\0\2{}",
    b"\0" * 100,
    b"\x7e\0\0\0\5\0",
]


def feed(data: bytes, sizes: list[int]) -> vmdescription.TailFinder:
    finder = vmdescription.TailFinder()
    position = 0
    while position < len(data):
        size = sizes[position % len(sizes)]
        finder.feed(data[position : position + size])
        position += size
    return finder


def oracle(data: bytes) -> tuple[int, object, int] | None:
    """Find the description that ends `data` by trying every place, the last one first."""
    for start in range(len(data) - 8, -1, -1):
        length = len(data) - start - 6
        if data[start : start + 6] != b"\0\6" + struct.pack(">I", length):
            continue
        try:
            value = json.loads(data[start + 6 :])
        except ValueError:
            continue
        if isinstance(value, dict):
            return start, value, length
    return None


@pytest.mark.parametrize("seed", range(200))
def test_against_the_oracle(seed: int) -> None:
    rng = random.Random(seed)
    state = b"".join(rng.choice([rng.choice(DECOYS), rng.randbytes(rng.randrange(40))]) for _ in range(30))
    value = rng.choice([{}, {"devices": [1, 2]}, {"page_size": 4096, "devices": [], "x": "y" * 300}])
    text = json.dumps(value, separators=rng.choice([(",", ":"), (", ", ": ")])).encode()
    text = rng.choice([text, b"{ " + text[1:], b"{\n" + text[1:]])
    data = state + rng.choice([b"\0" + streams.description(text), b""])
    found = feed(data, [rng.choice([1, 2, 3, 7, 8, 9, 100, 5000]) for _ in range(7)]).find()
    assert found == oracle(data), f"seed {seed}"


@pytest.mark.parametrize("size", range(1, 20))
def test_pieces_of_every_size(size: int) -> None:
    data = b"x" * 50 + b"\0" + streams.description(b'{"devices":[]}')
    finder = feed(data, [size])
    assert finder.find() == (50, {"devices": []}, 14)
    assert finder.nbytes == len(data)


def test_the_end_is_seen_exactly_where_it_is() -> None:
    data = b"device" + b"\0" + streams.description(b'{"a":{}}') + b"\0"
    finder = vmdescription.TailFinder()
    seen = []
    for offset in range(len(data)):
        finder.feed(data[offset : offset + 1])
        if finder.find() is not None:
            seen.append(offset + 1)
    assert seen == [len(data) - 1]


@pytest.mark.parametrize(
    ("tail", "with_footers", "without"),
    [
        (b"", False, False),
        (b"x", False, False),
        (b"\0", False, True),
        (b"\x7e\0\0\0\5\0", True, True),
        (b"x\x7e\0\0\0\5\0", True, True),
        (b"\x7e\0\0\0\5x", False, False),
        (b"\x7e\0\0\0\0\0\0", False, True),
        (b"\0\0\0\5\0", False, True),
    ],
)
def test_what_may_be_the_end_of_a_stream_without_description(tail: bytes, with_footers: bool, without: bool) -> None:
    finder = vmdescription.TailFinder()
    finder.feed(tail)
    assert finder.find() is None
    assert finder.ends_like_eof(has_footers=True) is with_footers
    assert finder.ends_like_eof(has_footers=False) is without


def test_device_state_is_not_held() -> None:
    finder = vmdescription.TailFinder()
    piece = random.Random(3).randbytes(256 << 10)
    finder.feed(piece)
    tracemalloc.start()
    for _ in range(200):
        finder.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    finder.feed(streams.EOF + streams.description(b"{}"))
    assert finder.find() == (201 * len(piece), {}, 2)


@pytest.mark.parametrize("length", [b"\0\xf0\0\0", b"\0\0\0\2", b"\0\1\0\0", b"\0\0\xff\xff"])
def test_device_state_that_looks_like_descriptions(length: bytes) -> None:
    """Whatever the guest has put into its devices: little is held, and the end is found."""
    finder = vmdescription.TailFinder()
    piece = (b"\0\6" + length + b"{}") * (1 << 15)
    tracemalloc.start()
    for _ in range(8):
        finder.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    finder.feed(streams.EOF + streams.description(b'{"devices":[]}'))
    assert finder.find() == (8 * len(piece), {"devices": []}, 14)


def test_a_description_that_never_comes_is_held_up_to_its_bound() -> None:
    finder = vmdescription.TailFinder()
    finder.feed(b"\0\6\1\0\0\0{}")
    piece = bytes(1 << 20)
    tracemalloc.start()
    for _ in range(40):
        finder.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert peak < 24 << 20
    assert held < 3 << 20


@pytest.mark.parametrize("length", [0x600, 0x60000, 0x6_0006])
def test_a_length_field_that_looks_like_a_start(length: int) -> None:
    text = b'{"x{y":"' + b"z" * (length - 10) + b'"}'
    finder = vmdescription.TailFinder()
    finder.feed(b"state" + streams.EOF + streams.description(text))
    found = finder.find()
    assert found is not None
    assert (found[0], found[2]) == (5, length)
