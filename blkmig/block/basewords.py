# SPDX-License-Identifier: GPL-2.0-or-later
"""What only the base holds, said before the first block: so a target with another base is found before it is written.

A statement names a disk and runs of its blocks, each with a digest of what the base holds there. The first statements
have no runs: they name the disks in the order in which they will come. A statement is a text of bytes and goes over the
wire as the sizes do (see `sizes`), four bytes in the EOS word of each empty PART::

    bits of the word    0..8     9       10       11..30              31..62              63
                        EOS      0       1        as in START         four bytes of it    1

    u8 n, u8 r          bytes of the name, number of runs
    name                n bytes
    runs                r times: u32 first block, u32 number of blocks, 16 bytes of digest
    zeros               up to a multiple of four bytes
    CRC-32              of all that stands before it

Bits 9 to 30 are those of the first EOS (see `wire`), so a blkmig that knows no statements hears the same once more.
Bit 63 is there so that nobody takes the word for a footer, which begins with the byte 7e. The digest of a run is the
BLAKE2b, of 16 bytes, of the digests of its blocks, one after the other (see `digests`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .. import _core, errors
from ..disk import geometry
from . import digests, sizes, wire

MAX_RUNS = 255
MAX_BLOCKS = 1 << 32
"""Of a disk of more blocks, which are 4 PiB, nothing is said."""

_HEAD, _RUN, _CRC = struct.Struct(">BB"), struct.Struct(">II16s"), struct.Struct(">I")
_WORD = 4
_NO_FOOTER = 1 << 8 * _WORD


class BaseRun(NamedTuple):
    """Neighbouring blocks that only the base holds, and the digest of what it holds there."""

    first: int
    nblocks: int
    digest: bytes


def digest_of_run(parts: Iterable[bytes | memoryview]) -> bytes:
    """Return the digest of a run from those of its blocks, which come in parts of any length."""
    import hashlib

    found = hashlib.blake2b(digest_size=digests.DIGEST_SIZE)
    for part in parts:
        found.update(part)
    return found.digest()


def say(marks: int, name: bytes, runs: Sequence[BaseRun]) -> list[bytes]:
    """Return the EOS words that say what only the base of the disk `name` holds; `marks` are those of the first EOS."""
    words = []
    for start in range(0, max(len(runs), 1), MAX_RUNS):
        text = _statement(name, runs[start : start + MAX_RUNS])
        for place in range(0, len(text), _WORD):
            value = int.from_bytes(text[place : place + _WORD], "big") | _NO_FOOTER
            word = (value << wire.BASE_SHIFT | marks) << _core.SECTOR_BITS | _core.FLAG_EOS
            words.append(word.to_bytes(8, "big"))
    return words


def _statement(name: bytes, runs: Sequence[BaseRun]) -> bytes:
    text = _HEAD.pack(len(name), len(runs)) + name
    text += b"".join(_RUN.pack(run.first, run.nblocks, run.digest) for run in runs)
    text += bytes(-len(text) % _WORD)
    return text + _CRC.pack(zlib.crc32(text))


def _length(head: bytes | bytearray) -> int:
    """Return how many bytes the statement has that begins with `head`."""
    nbytes, count = _HEAD.unpack_from(head)
    length = _HEAD.size + nbytes + count * _RUN.size
    return int(length + -length % _WORD + _CRC.size)


class SaidBase:
    """What a stream says of its disks' bases. Of a disk no more is kept than how far that has come."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends: dict[str, int] = {}

    @property
    def is_whole(self) -> bool:
        """Return whether each statement that began has come to its end."""
        return not self._text

    def take(self, value: int, said: sizes.SaidSizes, *, position: int) -> tuple[str, list[BaseRun]] | None:
        """Take the bits of an EOS word from `wire.BASE_SHIFT` on; return disk and runs if a statement ends with it.

        Raises :class:`~blkmig.errors.StreamError` for what no blkmig says. The runs of a disk come in ascending order,
        and each block once.
        """
        if not value & _NO_FOOTER:
            raise damaged(position)
        self._text += (value ^ _NO_FOOTER).to_bytes(_WORD, "big")
        if len(self._text) < _length(self._text):
            return None
        text, self._text = bytes(self._text), bytearray()
        if text[-_CRC.size :] != _CRC.pack(zlib.crc32(text[: -_CRC.size])):
            raise damaged(position)
        return self._parse(text, said, position)

    def _parse(self, text: bytes, said: sizes.SaidSizes, position: int) -> tuple[str, list[BaseRun]]:
        nbytes, count = _HEAD.unpack_from(text)
        start = _HEAD.size + nbytes
        name = text[_HEAD.size : start].decode("utf-8", "surrogateescape")
        runs = [BaseRun(*run) for run in _RUN.iter_unpack(text[start : start + count * _RUN.size])]
        size, end = said.of(name), self._ends.get(name, 0)
        if size is None:
            raise damaged(position)
        for run in runs:
            if run.first < end or not run.nblocks:
                raise damaged(position)
            end = run.first + run.nblocks
        if end > geometry.BlockGeometry(size).nblocks:
            raise damaged(position)
        self._ends[name] = end
        return name, runs


def damaged(position: int) -> errors.StreamError:
    """Return the error for a statement that no blkmig makes."""
    return errors.StreamError("what the stream says of its disks' bases is damaged: send it again", position=position)
