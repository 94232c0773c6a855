# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorded streams of tests/golden: what they are, and what must come out of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import lzma
import pathlib
from collections.abc import Iterator
from typing import Any

import real_qemu
from real_qemu import MiB

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
MARKER = 0xEE
"""What targets hold before, to tell what was written."""

CANARY = 64 << 10
"""Bytes before and behind a target in memory that nobody may touch."""


@dataclasses.dataclass(frozen=True)
class Disk:
    """One disk of a stream: its name on the wire, and what it held when the source had ended."""

    name: str
    size: int
    sha256: str
    seed: str | None = None
    zero_blocks: tuple[int, ...] = ()

    @property
    def contents(self) -> bytes:
        """What a target must hold, where it is known byte for byte."""
        assert self.seed is not None, "a guest wrote this disk: only its digest is known"
        return real_qemu.pattern(self.size, seed=self.seed, holes=lambda block: block in self.zero_blocks)

    @property
    def nblocks(self) -> int:
        """Blocks of 1 MiB, the last one maybe in part."""
        return -(-self.size // MiB)


@dataclasses.dataclass(frozen=True)
class Golden:
    """One recorded stream and its entry in the manifest."""

    entry: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name, and its file's."""
        return str(self.entry["name"])

    @property
    def verdict(self) -> str:
        """What a receiver must find."""
        return str(self.entry["verdict"])

    @property
    def disks(self) -> list[Disk]:
        """The disks that were sent."""
        return [Disk(**{**disk, "zero_blocks": tuple(disk.get("zero_blocks", ()))}) for disk in self.entry["disks"]]

    @property
    def stream(self) -> bytes:
        """The bytes."""
        return unpack(self.name)


@functools.lru_cache(maxsize=4)
def unpack(name: str) -> bytes:
    """Return the bytes of a stream."""
    return lzma.decompress((FOLDER / f"{name}.stream.xz").read_bytes())


@functools.cache
def manifest() -> dict[str, Golden]:
    """Return all streams by name."""
    return {entry["name"]: Golden(entry) for entry in json.loads((FOLDER / "manifest.json").read_text())}


def with_verdict(*verdicts: str) -> list[str]:
    """Return the names of the streams with one of `verdicts`."""
    return [golden.name for golden in manifest().values() if golden.verdict in verdicts]


class GuardedMemory:
    """Memory for a target, filled with `contents` or the marker, between canaries."""

    def __init__(self, size: int, contents: bytes | None = None) -> None:
        """Allocate it."""
        self._buffer = bytearray([MARKER]) * (size + 2 * CANARY)
        self.view = memoryview(self._buffer)[CANARY : CANARY + size]
        if contents is not None:
            self.view[:] = contents

    @property
    def sha256(self) -> str:
        """The digest of what it holds."""
        return hashlib.sha256(self.view).hexdigest()

    def check_canaries(self) -> None:
        """Fail if something outside the target was written."""
        untouched = bytes([MARKER]) * CANARY
        assert self._buffer[:CANARY] == untouched
        assert self._buffer[-CANARY:] == untouched

    def written_blocks(self) -> Iterator[int]:
        """Yield the blocks that do not hold the marker any more."""
        for block in range(-(-len(self.view) // MiB)):
            piece = bytes(self.view[block * MiB : (block + 1) * MiB])
            if piece != bytes([MARKER]) * len(piece):
                yield block

    def check_blocks(self, contents: bytes) -> set[int]:
        """Fail unless each block holds either the marker or its part of `contents`; return those that were written."""
        written = set(self.written_blocks())
        for block in written:
            here = slice(block * MiB, (block + 1) * MiB)
            assert self.view[here] == contents[here], f"block {block} was written in part, or wrong"
        return written
