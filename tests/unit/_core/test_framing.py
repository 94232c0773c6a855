# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers and records in memory, against struct; and a parser that meets every cut and every odd flag."""

from __future__ import annotations

import itertools
import random
import struct

import numpy as np
import pytest

from blkmig import _core

NUMBERS = [
    (_core.put_byte, _core.get_byte, ">B"),
    (_core.put_be16, _core.get_be16, ">H"),
    (_core.put_be32, _core.get_be32, ">I"),
    (_core.put_be64, _core.get_be64, ">Q"),
]
DATA, ZERO, EOS, PROGRESS = _core.FLAG_DEVICE_BLOCK, _core.FLAG_DEVICE_BLOCK | _core.FLAG_ZERO_BLOCK, 2, 4
VALUES = (0, 1, 0x7F, 0x80, 0x0102030405060708, (1 << 64) - 2, (1 << 64) - 1)
NAMES = [b"", b"v", b"drive0", b"\0\xff" * 20, b"n" * 255]


def record(sector: int, flags: int, name: bytes) -> bytes:
    return struct.pack(f">QB{len(name)}s", sector << 9 | flags, len(name), name)


def zero_records(sector: int, count: int, name: bytes) -> bytes:
    return b"".join(record(sector + 2048 * i, ZERO, name) for i in range(count))


def test_constants() -> None:
    assert (_core.BLOCK_SIZE, _core.SECTOR_SIZE, _core.SECTOR_BITS, _core.SECTORS_PER_BLOCK) == (1 << 20, 512, 9, 2048)
    assert (_core.FLAG_DEVICE_BLOCK, _core.FLAG_EOS, _core.FLAG_PROGRESS, _core.FLAG_ZERO_BLOCK) == (1, 2, 4, 8)


@pytest.mark.parametrize(("put", "get", "code"), NUMBERS)
def test_numbers(put, get, code: str) -> None:
    size = struct.calcsize(code)
    top = (1 << 8 * size) - 1
    for offset, value in itertools.product(range(9), VALUES):
        value &= top
        buffer = bytearray(b"\xaa" * 20)
        expected = bytearray(buffer)
        struct.pack_into(code, expected, offset, value)
        assert put(buffer, offset, value) == offset + size
        assert buffer == expected
        assert get(buffer, offset) == get(bytes(buffer), offset) == value


@pytest.mark.parametrize(("put", "get", "code"), NUMBERS)
def test_numbers_outside(put, get, code: str) -> None:
    size = struct.calcsize(code)
    buffer = bytearray(size + 3)
    for offset in (4, size + 3, 1 << 40, (1 << 63) - 1, -1, -(1 << 63)):
        with pytest.raises(IndexError, match=f"{size} bytes at offset {offset} are not inside"):
            put(buffer, offset, 1)
        with pytest.raises(IndexError):
            get(buffer, offset)
    for value in (-1, 1 << 8 * size, 1 << 64, -(1 << 70)):
        with pytest.raises(OverflowError):
            put(buffer, 0, value)
    with pytest.raises(TypeError):
        put(buffer, 0, "1")
    with pytest.raises((TypeError, BufferError)):
        put(bytes(20), 0, 1)
    assert buffer == bytes(size + 3)
    buffer.clear()  # no view is left behind
    with pytest.raises(IndexError):
        get(b"", 0)


@pytest.mark.parametrize("name", NAMES)
def test_header(name: bytes) -> None:
    for sector, flags in itertools.product((0, 1, 2048, (1 << 55) - 1), (0, 1, 9, 511)):
        buffer = bytearray(b"\xaa" * 300)
        end = _core.put_block_header(buffer, 5, sector, flags, name)
        assert bytes(buffer[5:end]) == record(sector, flags, name)
        assert set(buffer[:5]) | set(buffer[end:]) == {0xAA}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 300, 6000])
def test_zero_records(name: bytes, count: int) -> None:
    expected = zero_records(77, count, name)
    buffer = np.full(3 + len(expected) + 4, 0xAA, np.uint8)
    end = _core.put_zero_records(buffer, 3, 77, count, name)
    assert end == 3 + len(expected)
    assert buffer[3:end].tobytes() == expected
    assert set(buffer[:3].tolist() + buffer[end:].tolist()) == {0xAA}
    if count:
        assert _core.parse_run(buffer, 3, end) == (ZERO, name, 77, count, end)
        with pytest.raises(IndexError):
            _core.put_zero_records(buffer, 8, 77, count, name)


@pytest.mark.parametrize("length", range(256))
def test_names_of_every_length(length: int) -> None:
    """Records are written and compared in pieces: each byte of a name counts, and no byte behind the records."""
    name = bytes(range(1, 1 + length))
    count = 12
    expected = zero_records(0, count, name)
    buffer = bytearray(b"\xaa" * (len(expected) + 40))
    end = _core.put_zero_records(buffer, 0, 0, count, name)
    assert bytes(buffer) == expected + b"\xaa" * 40
    assert _core.parse_run(buffer, 0, end) == (ZERO, name, 0, count, end)
    step = 9 + length
    for byte in range(step):
        other = bytearray(expected)
        other[5 * step + byte] ^= 0x80
        assert _core.parse_run(other, 0, end) == (ZERO, name, 0, 5, 5 * step), byte
    for stop in range(end - step + 1, end):
        assert _core.parse_run(expected, 0, stop) == (ZERO, name, 0, count - 1, end - step)


def test_what_does_not_fit_a_record() -> None:
    buffer = bytearray(1000)
    for put in (_core.put_block_header, _core.put_zero_records):
        with pytest.raises(OverflowError, match="sector 36028797018963968 does not fit"):
            put(buffer, 0, 1 << 55, 1, b"vda")
        with pytest.raises(OverflowError, match="256 bytes does not fit"):
            put(buffer, 0, 0, 1, bytes(256))
        with pytest.raises(TypeError):
            put(buffer, 0, 0, 1, None)
        with pytest.raises(TypeError):
            put(buffer, 0, 0, 1, "vda")
        with pytest.raises(IndexError):
            put(buffer, 995, 0, 1, b"vda")
    with pytest.raises(OverflowError, match="flags 0x200 do not fit"):
        _core.put_block_header(buffer, 0, 0, 512, b"vda")
    last = (1 << 55) - 2048
    assert _core.put_zero_records(buffer, 0, last, 1, b"") == 9
    for sector, count in ((last, 2), (last + 1, 2), (0, (1 << 44) + 1), (2048, 1 << 44), (0, (1 << 64) - 1)):
        with pytest.raises(OverflowError, match="blocks from sector"):
            _core.put_zero_records(buffer, 0, sector, count, b"")
    with pytest.raises(IndexError):
        _core.put_zero_records(buffer, 0, 0, 1 << 44, b"")
    assert buffer == record(last, 9, b"") + bytes(991)


def test_bit_0_comes_first() -> None:
    """Every combination of flags: DEVICE_BLOCK decides alone."""
    for flags in range(512):
        buffer = record(4096, flags, b"vdb") + bytes(50)
        expected = (flags, b"vdb", 4096, 1, 12) if flags & DATA else (flags, b"", 4096, 1, 8)
        assert _core.parse_run(buffer, 0, len(buffer)) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flags", [DATA, ZERO, EOS, PROGRESS, 0])
def test_cut_at_every_byte(name: bytes, flags: int) -> None:
    """A record is there when all of it is, and not before."""
    stream = record(2048, flags, name) if flags & DATA else struct.pack(">Q", 2048 << 9 | flags)
    buffer = b"\x5a" + stream + b"\x01" * 300
    for stop in range(1, 1 + len(stream)):
        assert _core.parse_run(buffer, 1, stop) is None
    assert _core.parse_run(buffer, 1, 1 + len(stream)) is not None


def test_run_cut_at_every_byte() -> None:
    """What is complete is a run; the rest waits for more."""
    stream = zero_records(0, 5, b"vda")
    for stop in range(len(stream) + 1):
        whole = stop // 12
        expected = (ZERO, b"vda", 0, whole, 12 * whole) if whole else None
        assert _core.parse_run(stream, 0, stop) == expected


def test_what_ends_a_run() -> None:
    first = zero_records(10, 3, b"vda")
    ends = {
        "a gap": record(10 + 4 * 2048, ZERO, b"vda"),
        "the same sector": record(10 + 2 * 2048, ZERO, b"vda"),
        "a step back": record(10, ZERO, b"vda"),
        "one sector": record(11 + 3 * 2048, ZERO, b"vda"),
        "another name": record(10 + 3 * 2048, ZERO, b"vdb"),
        "a longer name": record(10 + 3 * 2048, ZERO, b"vda1"),
        "a shorter name": record(10 + 3 * 2048, ZERO, b"vd"),
        "data": record(10 + 3 * 2048, DATA, b"vda"),
        "other flags": record(10 + 3 * 2048, ZERO | 2, b"vda"),
        "end": struct.pack(">Q", EOS),
        "nothing": b"",
    }
    for what, end in ends.items():
        stream = first + end + bytes(40)
        assert _core.parse_run(stream, 0, len(stream)) == (ZERO, b"vda", 10, 3, len(first)), what


def test_a_run_does_not_go_round_the_end_of_sectors() -> None:
    last = (1 << 55) - 2048
    stream = record(last, ZERO, b"a") + record(0, ZERO, b"a")
    assert _core.parse_run(stream, 0, len(stream)) == (ZERO, b"a", last, 1, 10)


@pytest.mark.parametrize("seed", range(20))
def test_random_streams(seed: int) -> None:
    """Any records in a row come back as they went in, runs counted."""
    rnd = random.Random(seed)
    stream, expected = b"", []
    for _ in range(40):
        kind = rnd.choice(("data", "zero", "word"))
        name, sector = rnd.choice(NAMES), rnd.randrange(1 << 40)
        if kind == "data":
            stream += record(sector, DATA, name)
            expected.append((DATA, name, sector, 1))
        elif kind == "zero":
            count = rnd.randint(1, 9)
            stream += zero_records(sector, count, name)
            expected.append((ZERO, name, sector, count))
        else:
            flags = rnd.choice((EOS, PROGRESS, 0, 16))
            stream += struct.pack(">Q", sector << 9 | flags)
            expected.append((flags, b"", sector, 1))
    found, at = [], 0
    while at < len(stream):
        *run, at = _core.parse_run(stream, at, len(stream))
        found.append(tuple(run))
    assert found == expected


def test_noise_is_never_read_outside() -> None:
    """Random bytes parse to something inside the buffer, or to nothing."""
    for seed in range(2000):
        rnd = random.Random(seed)
        noise = rnd.randbytes(rnd.randint(0, 300))
        start = rnd.randint(0, len(noise))
        stop = rnd.randint(start, len(noise))
        run = _core.parse_run(noise, start, stop)
        if run is None:
            continue
        flags, name, sector, count, end = run
        assert start + 8 <= end <= stop, seed
        assert count >= 1, seed
        word = int.from_bytes(noise[start : start + 8], "big")
        assert (flags, sector) == (word & 511, word >> 9), seed
        assert name == (noise[start + 9 : start + 9 + noise[start + 8]] if flags & 1 else b""), seed


def test_parse_outside() -> None:
    for start, stop in ((-1, 8), (0, 17), (17, 17), (9, 8), (16, 1 << 62)):
        with pytest.raises(IndexError):
            _core.parse_run(bytes(16), start, stop)
    assert _core.parse_run(bytes(16), 16, 16) is None
