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
    finder = vmdescription.TailFinder(has_footers=True)
    position = 0
    while position < len(data):
        size = sizes[position % len(sizes)]
        finder.feed(data[position : position + size])
        position += size
    return finder


def oracle(data: bytes) -> vmdescription.StreamEnd | None:
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
            return vmdescription.StreamEnd(start, value, length)
    return None


@pytest.mark.parametrize("seed", range(200))
def test_against_the_oracle(seed: int) -> None:
    rng = random.Random(seed)
    state = b"".join(rng.choice([rng.choice(DECOYS), rng.randbytes(rng.randrange(40))]) for _ in range(30))
    value = rng.choice([{}, {"devices": [1, 2]}, {"page_size": 4096, "devices": [], "x": "y" * 300}])
    text = json.dumps(value, separators=rng.choice([(",", ":"), (", ", ": ")])).encode()
    text = rng.choice([text, b"{ " + text[1:], b"{\n" + text[1:]])
    data = state + rng.choice([b"\0" + streams.description(text), b""])
    found = feed(data, [rng.choice([1, 2, 3, 7, 8, 9, 100, 5000]) for _ in range(7)]).find_here()
    assert found == oracle(data), f"seed {seed}"


@pytest.mark.parametrize("size", range(1, 20))
def test_pieces_of_every_size(size: int) -> None:
    data = b"x" * 50 + b"\0" + streams.description(b'{"devices":[]}')
    finder = feed(data, [size])
    assert finder.find_here() == vmdescription.StreamEnd(50, {"devices": []}, 14)
    assert finder.nbytes == len(data)


def test_the_end_is_seen_exactly_where_it_is() -> None:
    data = b"device" + b"\0" + streams.description(b'{"a":{}}') + b"\0"
    finder = vmdescription.TailFinder(has_footers=True)
    seen = []
    for offset in range(len(data)):
        finder.feed(data[offset : offset + 1])
        if finder.find_here() is not None:
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
    for has_footers, expected in ((True, with_footers), (False, without)):
        finder = vmdescription.TailFinder(has_footers=has_footers)
        finder.feed(tail)
        assert finder.find_here() is None
        assert finder.ends_like_eof() is expected


def test_device_state_is_not_held() -> None:
    finder = vmdescription.TailFinder(has_footers=True)
    piece = random.Random(3).randbytes(256 << 10)
    finder.feed(piece)
    tracemalloc.start()
    for _ in range(200):
        finder.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    finder.feed(streams.EOF + streams.description(b"{}"))
    assert finder.find_here() == vmdescription.StreamEnd(201 * len(piece), {}, 2)


@pytest.mark.parametrize("length", [b"\0\xf0\0\0", b"\0\0\0\2", b"\0\1\0\0", b"\0\0\xff\xff"])
def test_device_state_that_looks_like_descriptions(length: bytes) -> None:
    """Whatever the guest has put into its devices: little is held, and the end is found."""
    finder = vmdescription.TailFinder(has_footers=True)
    piece = (b"\0\6" + length + b"{}") * (1 << 15)
    tracemalloc.start()
    for _ in range(8):
        finder.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    finder.feed(streams.EOF + streams.description(b'{"devices":[]}'))
    assert finder.find_here() == vmdescription.StreamEnd(8 * len(piece), {"devices": []}, 14)


def test_a_description_that_never_comes_is_held_up_to_its_bound() -> None:
    finder = vmdescription.TailFinder(has_footers=True)
    finder.feed(b"\0\6\0\x80\0\0{}")
    piece = bytes(1 << 20)
    tracemalloc.start()
    for _ in range(12):
        finder.feed(piece)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20
    assert held < 3 << 20


@pytest.mark.parametrize("length", [0x600, 0x60000, 0x6_0006])
def test_a_length_field_that_looks_like_a_start(length: int) -> None:
    text = b'{"x{y":"' + b"z" * (length - 10) + b'"}'
    finder = vmdescription.TailFinder(has_footers=True)
    finder.feed(b"state" + streams.EOF + streams.description(text))
    found = finder.find_here()
    assert found is not None
    assert (found.eof_offset, found.description_nbytes) == (5, length)


# -- descriptions that prove themselves ------------------------------------------------------------------------------


def described(*devices: tuple[str, int]) -> bytes:
    entries = [{"name": name, "instance_id": 0, "fields": [{"name": "x", "size": size}]} for name, size in devices]
    return json.dumps({"page_size": 4096, "devices": entries}).encode()


def full(number: int, name: str, payload: bytes, *, footers: bool = True) -> bytes:
    return streams.start(number, name, payload, kind=streams.FULL, footers=footers)


@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("already_read", [0, 1, 20])
@pytest.mark.parametrize("size", [1, 7, 64, 100000])
def test_sizes_that_add_up_are_the_end_whatever_follows(footers: bool, already_read: int, size: int) -> None:
    state = full(1, "timer", bytes(100), footers=footers) + full(2, "cpu", b"\0\6\0\0\0\2{}", footers=footers)
    text = described(("timer", 100), ("cpu", 8))
    data = (state + streams.EOF + streams.description(text))[already_read:]
    finder = vmdescription.TailFinder(already_read, has_footers=footers)
    for offset in range(0, len(data), size):
        assert finder.end is None
        finder.feed(data[offset : offset + size])
    expected = vmdescription.StreamEnd(len(state) - already_read, json.loads(text), len(text))
    assert finder.end == expected
    finder.feed(b"\0\6\0\0\0\2{}" * 100)
    assert finder.end == expected


@pytest.mark.parametrize("wrong", [-1, 1, 4096])
def test_sizes_that_do_not_add_up_prove_nothing(wrong: int) -> None:
    finder = vmdescription.TailFinder(has_footers=True)
    finder.feed(full(1, "timer", bytes(100)) + streams.EOF + streams.description(described(("timer", 100 + wrong))))
    assert finder.end is None
    assert finder.find_here() is not None


def test_described_sizes() -> None:
    subsection = {"vmsd_name": "dev/sub", "version": 1, "fields": [{"name": "y", "size": 3}]}
    device = {
        "name": "dev",
        "fields": [{"size": 4}, {"size": 2, "array_len": 10}, {"size": 5, "struct": {"fields": [{"size": 5}]}}],
        "subsections": [subsection, subsection | {"subsections": [subsection]}],
    }
    old_style = {"name": "old", "size": 77}
    payload = 4 + 20 + 5 + 3 * (1 + 1 + 7 + 4 + 3)
    total = (1 + 4 + 1 + 3 + 8 + payload) + (1 + 4 + 1 + 3 + 8 + 77)
    description = {"devices": [device, old_style]}
    assert vmdescription.described_nbytes(description, has_footers=False) == total
    assert vmdescription.described_nbytes(description, has_footers=True) == total + 10


def nested(depth: int) -> dict[str, object]:
    value: dict[str, object] = {"vmsd_name": "", "fields": []}
    for _ in range(depth):
        value = {"vmsd_name": "", "fields": [], "subsections": [value]}
    return value


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"devices": None},
        {"devices": 5},
        {"devices": [5]},
        {"devices": ["x"]},
        {"devices": [{}]},
        {"devices": [{"name": "x"}]},
        {"devices": [{"name": 5, "size": 5}]},
        {"devices": [{"name": "x", "size": "many"}]},
        {"devices": [{"name": "x", "size": []}]},
        {"devices": [{"name": "x", "size": float("nan")}]},
        {"devices": [{"name": "x", "size": float("inf")}]},
        {"devices": [{"name": "x", "fields": 7}]},
        {"devices": [{"name": "x", "fields": [7]}]},
        {"devices": [{"name": "x", "fields": [{"size": {}}]}]},
        {"devices": [{"name": "x", "fields": [{"size": float("inf")}]}]},
        {"devices": [{"name": "x", "fields": [{"size": "x", "array_len": 1 << 60}]}]},
        {"devices": [{"name": "x", "fields": [{"size": [1], "array_len": 1 << 60}]}]},
        {"devices": [{"name": "x", "fields": [], "subsections": [{}]}]},
        {"devices": [nested(5000) | {"name": "x"}]},
    ],
    ids=range(20),
)
def test_descriptions_without_sizes(description: dict[str, object]) -> None:
    assert vmdescription.described_nbytes(description, has_footers=True) is None
