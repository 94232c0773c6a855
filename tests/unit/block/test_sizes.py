# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes that are said before the first block: what goes in comes out, and what is damaged is refused (C15)."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

import blkmig
from blkmig import block, errors
from blkmig.block import sizes

MiB = 1 << 20


def heard(words: list[bytes], most: int) -> block.SaidSizes:
    said = block.SaidSizes()
    done = [said.take(int.from_bytes(word, "big") >> 9, most=most, position=7) for word in words]
    assert done == [False] * (len(words) - 1) + [True] if words else not done
    return said


@pytest.mark.parametrize("size", [0, 1, 511, 512, MiB + 3, 126 << 43, (1 << 51) - 1, 1 << 51, (1 << 63) - 1])
def test_what_is_said_is_heard(size: int) -> None:
    disks = [(b"vda", size), ("ü".encode(), 5), (b"\xff" * 255, size)]
    words = sizes.say(disks)
    for word in words:
        value = int.from_bytes(word, "big")
        assert value & 511 == 2, "a QEMU must see no more than EOS"
        assert not value >> 9 & 3, "and a blkmig that knows no sizes nothing either"
    said = heard(words, 3)
    assert len(said) == 3
    assert said.total == 2 * size + 5
    assert [said.of(name.decode("utf-8", "surrogateescape")) for name, _ in disks] == [size, 5, size]
    assert said.of("other") is None
    assert said.agree_with({"vda": size, "ü": 5, "\udcff" * 255: size})
    assert not said.agree_with({"vda": size, "ü": 5})
    assert not said.agree_with({"vda": size, "ü": 6, "\udcff" * 255: size})
    assert block.SaidSizes().agree_with({"vda": size})


def test_names_of_one_checksum_are_not_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zlib, "crc32", lambda _: 5)
    assert sizes.say([(b"a", 1), (b"b", 1)]) == []


def test_damaged_words() -> None:
    """Whatever bits are flipped: refused, or noticed by the description at the end."""
    rng, disks = random.Random(3), {"a": 5 * MiB + 1, "b": 1 << 52}
    words = [int.from_bytes(word, "big") for word in sizes.say([(name.encode(), size) for name, size in disks.items()])]
    for index in range(len(words)):
        for bit in range(11, 64):
            damaged = [word ^ (1 << bit) * (index == place) for place, word in enumerate(words)]
            said = block.SaidSizes()
            try:
                for word in damaged:
                    said.take(word >> 9, most=2, position=7)
            except errors.StreamError:
                continue
            assert not said.agree_with(disks)
    for _ in range(100):
        chosen = [rng.choice(words) for _ in range(rng.randrange(1, 6))]
        said = block.SaidSizes()
        try:
            for word in chosen:
                said.take(word >> 9, most=2, position=7)
        except errors.StreamError:
            continue
        assert said.agree_with(disks) == (chosen in (words, words[2:] + words[:2]))


def test_a_size_of_a_stream_costs_no_memory(tmp_path: Path) -> None:
    """C4: what a stream says of a disk may be anything; a file may be as large, a bitmap must not."""
    source = blkmig.MemoryBackend(bytearray(MiB), name="a")
    blkmig.send([source], f"file:{tmp_path}/s", zero_blocks=False)
    stream = (tmp_path / "s").read_bytes()
    honest, huge = (b"".join(sizes.say([(b"a", size)])) for size in (MiB, 1 << 62))
    for place in (0, 8):
        assert stream.count(honest[place : place + 8]) == 1
        stream = stream.replace(honest[place : place + 8], huge[place : place + 8])
    (tmp_path / "s").write_bytes(stream)
    with pytest.raises((errors.StreamError, errors.DeviceError)):
        blkmig.receive(f"file:{tmp_path}/s", {"a": tmp_path / "t"})
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
