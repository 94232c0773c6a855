# SPDX-License-Identifier: GPL-2.0-or-later
"""A frame is what it must be, or it is refused: whoever decompresses it gets the bytes it was made of, or an error."""

from __future__ import annotations

import random
import struct
import sys
import tracemalloc
from typing import Any

import pytest

from blkmig import errors, zstd

if sys.version_info >= (3, 14):
    from compression import zstd as library
else:
    from backports import zstd as library

MIB = 1 << 20
MAGIC = b"\x28\xb5\x2f\xfd"
TEXT = b"the quick brown fox " * 205


def made(data: bytes, *, mode: Any = None, **chosen: int) -> bytes:
    """Return a frame of the library's own, with options of its own."""
    options = {library.CompressionParameter[name]: value for name, value in chosen.items()}
    return library.ZstdCompressor(options=options).compress(data, mode or library.ZstdCompressor.FLUSH_FRAME)


@pytest.mark.parametrize("level", [-5, 1, 3])
@pytest.mark.parametrize("has_checksum", [False, True])
@pytest.mark.parametrize("nbytes", [1, 255, 256, 512, 4096, 65_791, 65_792, MIB - 512, MIB])
def test_round_trips(nbytes: int, has_checksum: bool, level: int) -> None:
    rng = random.Random(nbytes)
    compressor = zstd.Compressor(level, has_checksum=has_checksum)
    for data in (bytes(nbytes), rng.randbytes(nbytes), rng.randbytes(nbytes // 2 + 1).hex().encode()[:nbytes]):
        frame = compressor.frame(data)
        assert zstd.decompress(frame, nbytes) == data
        assert library.get_frame_info(frame).decompressed_size == nbytes
        assert library.get_frame_info(frame).dictionary_id == 0
        assert library.get_frame_size(frame) == len(frame)


def test_frames_are_made_each_for_itself() -> None:
    """What was compressed before leaves no trace in a frame: a lost one spoils no other one, and no block leaks."""
    compressor, other = (zstd.Compressor(1, has_checksum=False) for _ in range(2))
    compressor.frame(random.Random(1).randbytes(MIB))
    assert compressor.frame(TEXT) == other.frame(TEXT)


def refused(frame: bytes, nbytes: int, why: str | None = None) -> None:
    with pytest.raises(zstd.FrameError, match=why):
        zstd.decompress(frame, nbytes)


@pytest.mark.parametrize("nbytes", [0, 1, len(TEXT) - 1, len(TEXT) + 1, MIB, 1 << 40])
def test_a_wrong_size(nbytes: int) -> None:
    refused(made(TEXT), nbytes, "says that it holds")


def test_a_size_that_is_not_said() -> None:
    refused(made(TEXT, content_size_flag=0), len(TEXT), "does not say how many")


def test_a_size_that_is_a_lie() -> None:
    """The head says what the payload has, and the rest holds more, or less."""
    frame = made(bytes(MIB))
    assert frame[4] >> 6 == 2
    for lie in (4096, MIB - 1, MIB + 1):
        head = frame[: 5 if frame[4] & 0x20 else 6]
        refused(head + struct.pack("<I", lie) + frame[len(head) + 4 :], lie)


def test_a_bomb_costs_no_memory() -> None:
    bomb = bytearray(made(bytes(1 << 28), window_log=20))
    assert bomb[4] == 0x80
    refused(bytes(bomb), MIB, "says that it holds")
    bomb[6:10] = struct.pack("<I", MIB)
    tracemalloc.start()
    try:
        refused(bytes(bomb), MIB)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("log", [21, 25, 27])
def test_a_window_that_is_too_large(log: int) -> None:
    refused(made(bytes(1 << log), window_log=log, content_size_flag=0), MIB)
    refused(MAGIC + bytes([0x80, (log - 10) << 3]) + struct.pack("<I", MIB) + b"\x01\0\0", MIB, "window has")


@pytest.mark.parametrize("descriptor", [0x51, 0x57, 0xFF])
def test_a_window_a_little_too_large(descriptor: int) -> None:
    refused(MAGIC + bytes([0x80, descriptor]) + struct.pack("<I", MIB) + b"\x01\0\0", MIB, "window has")


def test_a_window_of_a_mebibyte_is_taken() -> None:
    data = random.Random(2).randbytes(MIB // 2) * 2
    compressor = library.ZstdCompressor(options={library.CompressionParameter.window_log: 20})
    compressor.set_pledged_input_size(MIB)
    frame = compressor.compress(data[:1000]) + compressor.compress(data[1000:], library.ZstdCompressor.FLUSH_FRAME)
    assert zstd.decompress(frame, MIB) == data


def test_dictionaries() -> None:
    rng = random.Random(3)
    samples = [b" ".join(rng.choice(TEXT.split()) for _ in range(50)) for _ in range(200)]
    dictionary = library.train_dict(samples, 2048)
    frame = library.compress(TEXT, zstd_dict=dictionary)
    refused(frame, len(TEXT), "dictionary")
    for size in (1, 2, 3):
        refused(MAGIC + bytes([0x60 | size]) + bytes(12), 256, "dictionary")


def test_flags_that_nobody_knows() -> None:
    frame = bytearray(made(TEXT))
    frame[4] |= 0x08
    refused(bytes(frame), len(TEXT), "flag that nobody knows")


@pytest.mark.parametrize("behind", [b"\0", b"x" * 100, MAGIC, made(TEXT), b"\x50\x2a\x4d\x18\x04\0\0\0abcd"])
def test_something_behind_it(behind: bytes) -> None:
    refused(made(TEXT) + behind, len(TEXT), "stands behind")


@pytest.mark.parametrize(
    "frame", [b"", MAGIC, MAGIC + b"\0", b"\x50\x2a\x4d\x18\x04\0\0\0abcd", bytes(64), b"\x27\xb5\x2f\xfd" * 9]
)
def test_what_is_no_frame(frame: bytes) -> None:
    refused(frame, 4096)


@pytest.mark.parametrize("has_checksum", [False, True])
def test_cut_short_at_every_byte(has_checksum: bool) -> None:
    frame = zstd.Compressor(1, has_checksum=has_checksum).frame(TEXT)
    for length in range(len(frame)):
        refused(frame[:length], len(TEXT))


def test_every_bit_that_flips_is_noticed_where_there_is_a_checksum() -> None:
    frame = zstd.Compressor(1, has_checksum=True).frame(random.Random(4).randbytes(300).hex().encode())
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = zstd.decompress(bytes(damaged), 600)
        except zstd.FrameError:
            continue
        assert found == zstd.decompress(frame, 600), f"bit {bit}"  # a bit that means nothing


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstd, "LIBRARY", "no_such_library")
    with pytest.raises(errors.ParameterError, match="pip install 'blkmig"):
        zstd.Compressor(1, has_checksum=False)
    with pytest.raises(errors.ParameterError, match="pip install 'blkmig"):
        zstd.decompress(made(TEXT), len(TEXT))
    monkeypatch.setattr(zstd, "PARENT", "no_such_library")
    assert not zstd.is_available()


def test_it_is_here() -> None:
    assert zstd.is_available()
