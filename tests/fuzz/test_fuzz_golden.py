# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded streams of a real QEMU, cut and damaged: the right disks or one clear error, and nothing written outside.

The targets are in memory, between canaries, and full of a marker before. So after each run every block can be checked:
it holds the marker or what the source sent, never a part of it.
"""

from __future__ import annotations

import functools
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import golden_streams
import numpy
import pytest
from golden_streams import Golden, GuardedMemory
from real_qemu import MiB

import blkmig
from blkmig import errors

RESTING = [
    name
    for name, golden in golden_streams.manifest().items()
    if golden.disks and golden.verdict != "lossy" and all(disk.name and disk.seed is not None for disk in golden.disks)
]
"""Streams whose disks are known byte for byte, because nobody wrote to them while they were sent."""

SMALL = ["unaligned-zero", "pc-2.2", "three-disks-2.2"]
NEAR = 10
"""Bytes around each boundary that are tried one by one."""


@functools.cache
def boundaries(name: str) -> tuple[int, ...]:
    """Return where block records and their payloads begin and end."""
    return tuple(find_boundaries(golden_streams.manifest()[name]))


def find_boundaries(golden: Golden) -> Iterator[int]:
    """Yield where block records and their payloads begin and end."""
    for disk in golden.disks:
        name = disk.name.encode()
        record = re.compile(rb"\0[\x01\x09](?=" + re.escape(bytes([len(name)]) + name) + rb")", re.DOTALL)
        for match in record.finditer(golden.stream):
            payload = match.end() + 1 + len(name)
            yield from (match.end() - 8, payload)
            if golden.stream[match.end() - 1] & 0x08 == 0:
                yield payload + MiB


def is_in_payload(position: int, golden: Golden) -> bool:
    """Whether a byte of the stream is a byte of a disk."""
    stream = golden.stream
    for disk in golden.disks:
        tail = bytes([len(disk.name)]) + disk.name.encode()
        start = stream.rfind(b"\x01" + tail, 0, position + 1)
        payload = start + 1 + len(tail)
        if start >= 0 and payload <= position < payload + MiB:
            return True
    return False


def receive(path: Path, golden: Golden) -> tuple[dict[str, GuardedMemory], errors.MigrationError | None]:
    """Receive the stream in `path` into memory; any exception but a MigrationError is a failure."""
    memories = {disk.name: GuardedMemory(disk.size) for disk in golden.disks}
    targets = {name: blkmig.MemoryBackend(memory.view, name=name) for name, memory in memories.items()}
    failure = None
    try:
        blkmig.receive(f"file:{path}", targets)
    except errors.MigrationError as error:
        failure = error
    for memory in memories.values():
        memory.check_canaries()
    return memories, failure


def check_cut(path: Path, golden: Golden, cut: int) -> None:
    """Receive a stream that ends too early: whole blocks only, and "complete" only if all of them came."""
    os.truncate(path, cut)
    memories, failure = receive(path, golden)
    written = {disk.name: memories[disk.name].check_blocks(disk.contents) for disk in golden.disks}
    if failure is None:
        assert all(len(written[disk.name]) == disk.nblocks for disk in golden.disks), f"cut at {cut}: not complete"
    else:
        assert str(failure), f"cut at {cut}"
        assert failure.exit_code in (1, 3, 5), f"cut at {cut}: {failure!r}"


@pytest.mark.parametrize("name", SMALL)
def test_cut_at_every_boundary(tmp_path: Path, name: str) -> None:
    golden = golden_streams.manifest()[name]
    size = len(golden.stream)
    cuts = set(range(300))
    for boundary in boundaries(name):
        cuts |= set(range(boundary - NEAR, boundary + NEAR))
    cuts |= {size - back for back in range(1, 64)}
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    for cut in sorted((cut for cut in cuts if 0 <= cut < size), reverse=True):
        check_cut(path, golden, cut)


@pytest.mark.parametrize("name", RESTING)
def test_cut_anywhere(tmp_path: Path, name: str) -> None:
    golden = golden_streams.manifest()[name]
    generator = random.Random(f"cut {name}")
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    for cut in sorted((generator.randrange(len(golden.stream)) for _ in range(20)), reverse=True):
        check_cut(path, golden, cut)


def test_every_cut_of_a_stream_without_disks(tmp_path: Path) -> None:
    """Every byte of header, sections and RAM; the device state behind is cut in steps."""
    golden = golden_streams.manifest()["no-disk"]
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    first_device = golden.stream.index(b"\x04\0\0\0\x00\x05timer") if b"\x05timer" in golden.stream else 2000
    cuts = set(range(0, first_device, 31)) | set(range(1500)) | set(range(first_device, len(golden.stream), 997))
    for cut in sorted(cuts, reverse=True):
        os.truncate(path, cut)
        try:
            blkmig.receive(f"file:{path}", into=tmp_path / "disks")
        except errors.MigrationError:
            continue
    assert not list(tmp_path.glob("disks/*"))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", RESTING)
def test_flipped_bits(tmp_path: Path, name: str, seed: int) -> None:
    """A stream has no checksum: a flip in a payload is a flip on the disk, and nothing else may come of any flip."""
    golden = golden_streams.manifest()[name]
    generator = random.Random(f"flip {name} {seed}")
    structure = [at + delta for at in boundaries(name) for delta in range(-NEAR, NEAR)] + list(range(300))
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    with path.open("r+b", buffering=0) as file:
        for _ in range(8):
            where = structure if generator.random() < 0.7 else range(len(golden.stream))
            flips = sorted({generator.choice(where) for _ in range(generator.choice((1, 1, 1, 2, 8)))})
            flips = [at for at in flips if 0 <= at < len(golden.stream)]
            masks = [1 << generator.randrange(8) for _ in flips]
            for at, mask in zip(flips, masks, strict=True):
                os.pwrite(file.fileno(), bytes([golden.stream[at] ^ mask]), at)
            message = f"seed {seed}: {list(zip(flips, masks, strict=True))}"
            memories, failure = receive(path, golden)
            if failure is None:
                check_damage(golden, memories, flips, message)
            else:
                assert str(failure), message
            for at in flips:
                os.pwrite(file.fileno(), golden.stream[at : at + 1], at)


def check_damage(golden: Golden, memories: dict[str, GuardedMemory], flips: list[int], message: str) -> None:
    """A damaged stream was called complete: then only bytes whose own bits were flipped may differ."""
    different = 0
    for disk in golden.disks:
        found = numpy.frombuffer(memories[disk.name].view, numpy.uint8)
        different += numpy.count_nonzero(found != numpy.frombuffer(disk.contents, numpy.uint8))
    in_payload = sum(is_in_payload(at, golden) for at in flips)
    assert different <= in_payload, f"{message}: {different} bytes of the disks differ"
