# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream with compressed payloads, of which one bit flips, or a frame is one that no blkmig makes.

In a file each frame has the checksum of its format, so that of payloads that are compressed damage is found, too.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import errors
from blkmig.block import extras

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = lab.MIB
SIZE = 3 * 512
MARKER = 0xEE
ZSTD = struct.pack(">QI", extras.ExtraKind.ZSTD << 9 | 0x100, 4)
BLOCK = struct.pack(">Q", 0x01) + b"\x01d"
"""What stands before the payload of the disk's block."""


def made(data: bytes, **chosen: int) -> bytes:
    options = {zstd.CompressionParameter[name]: value for name, value in chosen.items()}
    return zstd.compress(data, options=options)


def frame_record(frame: bytes, length: int | None = None) -> bytes:
    return ZSTD + struct.pack(">I", len(frame) if length is None else length) + BLOCK + frame


class Attack:
    """A stream of one small disk: its block, and later a pack, are compressed. It is received in many forms."""

    def __init__(self, folder: Path) -> None:
        rng = random.Random(9)
        self.disk = blkmig.MemoryBackend(bytearray(rng.randbytes(SIZE // 2).hex().encode()), name="d")
        self.images = [bytes([MARKER]) * SIZE, self.disk.pread(0, SIZE)]
        self._path = folder / "damaged"

        def drive(migration: blkmig.OutgoingMigration) -> None:
            migration.iterate()
            self.disk.pwrite(rng.randbytes(256).hex().encode(), 512)
            migration.complete()

        chosen = {"granularity": 4096, "format": "blkmig", "compress": "zstd"}
        self.data = lab.record(folder, [self.disk], drive, **chosen)
        self.images.append(self.disk.pread(0, SIZE))
        self.start = self.data.index(ZSTD)
        at = self.start + len(ZSTD)
        (nbytes,) = struct.unpack_from(">I", self.data, at)
        self.frame = self.data[at + 4 + len(BLOCK) :][:nbytes]
        self.first = frame_record(self.frame)
        assert self.data[self.start :].startswith(self.first)

    def receive(self, data: bytes, *, heads_are_right: bool = True) -> bytes:
        """Receive `data` and return what the target holds; a failure leaves nothing there but whole payloads."""
        self._path.write_bytes(data)
        memory = bytearray([MARKER]) * SIZE
        try:
            blkmig.receive(f"file:{self._path}", {"d": blkmig.MemoryBackend(memory, name="t")})
        except errors.MigrationError:
            assert not heads_are_right or bytes(memory) in self.images, "something was stored that is no payload"
            raise
        return bytes(memory)

    def with_first(self, record: bytes) -> bytes:
        """Return the stream with this in place of its first compressed block."""
        return self.data.replace(self.first, record, 1)


@pytest.fixture
def attack(tmp_path: Path) -> Attack:
    return Attack(tmp_path)


def test_every_bit_that_flips(attack: Attack) -> None:
    right = attack.disk.pread(0, SIZE)
    assert attack.receive(attack.data) == right
    stop = attack.data.rindex(ZSTD) + 600
    for position in range(attack.start, stop):
        for bit in range(8):
            damaged = bytearray(attack.data)
            damaged[position] ^= 1 << bit
            try:
                found = attack.receive(bytes(damaged), heads_are_right=False)
            except errors.MigrationError:
                continue
            assert found == right, f"bit {bit} of byte {position}: a wrong disk, and success"


PAYLOAD = random.Random(1).randbytes(8).hex().encode() * (MIB // 16)

HOSTILE: dict[str, bytes] = {
    "a bomb": made(bytes(1 << 26)),
    "a bomb whose window is right": made(bytes(1 << 26), window_log=20),
    "a bomb that says nothing of its size": made(bytes(1 << 26), window_log=20, content_size_flag=0),
    "no size": made(PAYLOAD, content_size_flag=0),
    "a byte less": made(PAYLOAD[:-1]),
    "a byte more": made(PAYLOAD + b"x"),
    "nothing": made(b""),
    "a dictionary": made(PAYLOAD)[:4] + bytes([made(PAYLOAD)[4] | 1]) + made(PAYLOAD)[5:],
    "a window of 2 MiB": b"\x28\xb5\x2f\xfd\x80\x58" + struct.pack("<I", MIB) + b"\x01\0\0",
    "a byte behind it": made(PAYLOAD) + b"\0",
    "two frames": made(PAYLOAD) + made(PAYLOAD),
    "two halves": made(PAYLOAD[: MIB // 2]) * 2,
    "a frame to be skipped before it": b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + made(PAYLOAD),
    "cut short": made(PAYLOAD)[:-1],
    "its head": made(PAYLOAD)[:9],
    "noise": random.Random(2).randbytes(500),
    "zeros": bytes(500),
    "one byte": b"\x28",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_frames_that_no_blkmig_makes(attack: Attack, name: str) -> None:
    assert made(PAYLOAD) != attack.frame
    with pytest.raises(errors.StreamError, match="compressed payload cannot be used"):
        attack.receive(attack.with_first(frame_record(HOSTILE[name])))


def test_a_frame_of_another_window_is_taken(attack: Attack) -> None:
    payload = attack.disk.pread(0, SIZE).ljust(MIB, b"\0")
    assert attack.receive(attack.with_first(frame_record(made(payload, window_log=10)))) == payload[:SIZE]


@pytest.mark.parametrize("length", [0, MIB - (MIB >> 4) + 1, MIB, 1 << 31, (1 << 32) - 1])
def test_lengths_that_cannot_be(attack: Attack, length: int) -> None:
    with pytest.raises(errors.StreamError, match=f"a frame of {length} bytes for one payload"):
        attack.receive(attack.with_first(frame_record(attack.frame, length)))


@pytest.mark.parametrize("body", [b"", b"\0", bytes(3), bytes(5), bytes(100)])
def test_bodies_that_cannot_be(attack: Attack, body: bytes) -> None:
    with pytest.raises(errors.StreamError, match="ZSTD is not followed by a payload, or is none"):
        attack.receive(attack.with_first(extras.extra(extras.ExtraKind.ZSTD, body) + BLOCK + attack.frame))


def test_two_of_them_for_one_payload(attack: Attack) -> None:
    with pytest.raises(errors.StreamError, match="ZSTD is not followed by a payload"):
        attack.receive(attack.with_first(attack.first[:16] + attack.first))


def test_a_pack_that_is_smaller_than_its_frame(attack: Attack) -> None:
    at = attack.data.rindex(ZSTD) + len(ZSTD)
    data = bytearray(attack.data)
    data[at : at + 4] = struct.pack(">I", 100_000)
    with pytest.raises(errors.StreamError, match=r"a frame of 100000 bytes for .* bytes of payload"):
        attack.receive(bytes(data))


def test_a_stream_that_is_cut_at_every_byte(attack: Attack) -> None:
    for position in range(attack.start, len(attack.data)):
        with pytest.raises(errors.MigrationError):
            attack.receive(attack.data[:position])


def test_in_the_section_block_there_is_none(tmp_path: Path) -> None:
    disk: Any = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    data = lab.record(tmp_path, [disk], format="block")
    (tmp_path / "s").write_bytes(data.replace(BLOCK, ZSTD + bytes(4) + BLOCK, 1))
    with pytest.raises(errors.StreamError, match="unknown flags 0x100"):
        blkmig.receive(f"file:{tmp_path}/s", {"d": blkmig.MemoryBackend(bytearray(MIB), name="t")})
