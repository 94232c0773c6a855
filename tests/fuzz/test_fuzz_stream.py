# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged streams of blkmig: cut at every byte, bytes flipped. The outcome is the right disk or one clear error."""

from __future__ import annotations

import random
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import errors

MIB = lab.MIB
SIZE = 3 * MIB + 1000


class GuardedDisk(blkmig.MemoryBackend):
    """A target in the middle of a buffer: what is written outside shows."""

    GUARD = b"\xa5" * 4096

    def __init__(self, size: int) -> None:
        self.whole = bytearray(self.GUARD + b"\xee" * size + self.GUARD)
        super().__init__(memoryview(self.whole)[len(self.GUARD) : len(self.GUARD) + size], name="d")

    def check(self) -> bytes:
        """Return the disk's contents, the guards intact."""
        assert self.whole.startswith(self.GUARD)
        assert self.whole.endswith(self.GUARD)
        return bytes(self.whole[len(self.GUARD) : -len(self.GUARD)])


@pytest.fixture(scope="module")
def content() -> bytes:
    return b"first" + bytes(MIB - 5) + b"x" * MIB + bytes(MIB) + b"tail" * 250


@pytest.fixture(scope="module", params=["block", "blkmig"])
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> bytes:
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    return lab.record(tmp_path_factory.mktemp("stream"), [disk], digests=True, format=request.param)


def load(path: Path, data: bytes) -> GuardedDisk:
    """Load `data` into a guarded disk; anything but success or one of our errors is a failure of the test."""
    path.write_bytes(data)
    disk = GuardedDisk(SIZE)
    try:
        blkmig.receive(f"file:{path}", {"d": disk}, verify=True)
    finally:
        disk.check()
    return disk


def interesting_offsets(stream: bytes) -> list[int]:
    """Return every offset outside payloads, and a few inside."""
    offsets, position = [], 0
    rng = random.Random(1)
    while position < len(stream):
        header = stream.find(b"\x01d", position)
        if header < 0:
            offsets += range(position, len(stream))
            break
        offsets += range(position, header + 2)
        if stream[header - 1] & 8:
            position = header + 2
            continue
        offsets += rng.sample(range(header + 2, header + 2 + MIB), 5)
        position = header + 2 + MIB
    return offsets


def test_every_cut(tmp_path: Path, stream: bytes, content: bytes) -> None:
    assert load(tmp_path / "s", stream).check() == content
    offsets = interesting_offsets(stream)
    assert 200 < len(offsets) < 2000
    for cut in offsets:
        with pytest.raises(errors.MigrationError):
            load(tmp_path / "s", stream[:cut])


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bytes(tmp_path: Path, stream: bytes, content: bytes, seed: int) -> None:
    rng = random.Random(seed)
    offsets = interesting_offsets(stream)
    for _ in range(60):
        damaged = bytearray(stream)
        for offset in rng.sample(offsets, rng.choice((1, 1, 2, 8))):
            damaged[offset] ^= 1 << rng.randrange(8)
        try:
            disk = load(tmp_path / "s", bytes(damaged))
        except errors.MigrationError:
            continue
        assert disk.check() == content, f"seed {seed}: a damaged stream gave a wrong disk and no error"
