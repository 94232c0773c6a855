# SPDX-License-Identifier: GPL-2.0-or-later
"""How large the disks of a stream are, said before the first block of any of them comes.

The ``block`` section has no place for it. But nobody looks at more than one bit of the word EOS that ends a section's
records, and a section may hold nothing else: a QEMU sends such empty sections by the thousand while it waits for its
disks. So right after START, each disk has two empty sections, whose EOS words say 55 bits each::

    bits of the word    0..8     9, 10    11, 12    13..44                  45..63
    first               EOS      0        1         CRC-32 of the name      size >> 51
    second              EOS      0        2         size & (1 << 51) - 1, up to bit 63

Bits 9 and 10 are marks of the first EOS (see `wire`), so a blkmig that knows these and no sizes sees nothing either.
A disk is told by a CRC of its name, because names have up to 255 bytes; where two are equal, no size is said at all.

A receiver believes no size: it uses them to refuse early, and the description at the end must say the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from .. import _core, disk, errors

_KIND_SHIFT, _KIND_MASK = 2, 3
_FIRST, _SECOND = 1, 2
_VALUE_SHIFT = 4
_CRC_BITS = 32
_LOW_BITS = 55 - _VALUE_SHIFT
_LOW_MASK = (1 << _LOW_BITS) - 1
_MAX_SIZE = (1 << 63) - 1


def say(disks: Sequence[tuple[bytes, int]]) -> list[bytes]:
    """Return the EOS words that say the sizes of disks, each given as its name on the wire and its exact size."""
    sizes = {zlib.crc32(name): size for name, size in disks}
    if len(sizes) < len(disks):
        return []
    return [
        (marks << _core.SECTOR_BITS | _core.FLAG_EOS).to_bytes(8, "big")
        for crc, size in sizes.items()
        for marks in (
            _FIRST << _KIND_SHIFT | (crc | size >> _LOW_BITS << _CRC_BITS) << _VALUE_SHIFT,
            _SECOND << _KIND_SHIFT | (size & _LOW_MASK) << _VALUE_SHIFT,
        )
    ]


class SaidSizes:
    """What a stream has said of its disks' sizes; empty for a stream from a QEMU, or from a blkmig before this one."""

    def __init__(self) -> None:
        self._sizes: dict[int | str, int] = {}
        self._key_of: Callable[[str], int | str] = _crc_of
        self._half: tuple[int, int] | None = None

    @classmethod
    def exactly(cls, sizes: Mapping[str, int]) -> SaidSizes:
        """Return the sizes of disks that are told by their whole names, as a table does it."""
        said = cls()
        said._key_of = str
        said._sizes.update(sizes)
        return said

    def take(self, marks: int, *, most: int, position: int) -> bool:
        """Take the marks of one EOS word; return whether the sizes of `most` disks are said with it.

        Raises :class:`~blkmig.errors.StreamError` for what no blkmig says.
        """
        kind, value = marks >> _KIND_SHIFT & _KIND_MASK, marks >> _VALUE_SHIFT
        if kind == _FIRST and self._half is None and len(self._sizes) < most:
            self._half = value & (1 << _CRC_BITS) - 1, value >> _CRC_BITS << _LOW_BITS
            return False
        if kind != _SECOND or self._half is None:
            raise _damaged(position)
        (crc, high), self._half = self._half, None
        if crc in self._sizes or high | value > _MAX_SIZE:
            raise _damaged(position)
        self._sizes[crc] = high | value
        return len(self._sizes) == most

    def __len__(self) -> int:
        """Return of how many disks the size was said."""
        return len(self._sizes)

    @property
    def total(self) -> int:
        """Return the bytes of all these disks together."""
        return sum(self._sizes.values())

    def of(self, name: str) -> int | None:
        """Return the size that was said for the disk called `name`."""
        return self._sizes.get(self._key_of(name))

    def has(self, name: str) -> bool:
        """Return whether the stream has a disk called `name`."""
        return self.of(name) is not None

    def number_of(self, name: str) -> int | None:
        """Return as which disk, counted from 0, the one called `name` is to appear; None if it was not said.

        A sender says its disks in the order in which it begins to read them. With many reads in flight a disk of a few
        blocks may be overtaken by the next one, so this is good for refusing what could be meant, not for placing it.
        """
        crc = _crc_of(name)
        return list(self._sizes).index(crc) if crc in self._sizes else None

    def besides(self, names: Iterable[str]) -> list[int]:
        """Return the sizes of the disks that are called by none of `names`, which the stream does not tell yet."""
        others = dict(self._sizes)
        for name in names:
            others.pop(self._key_of(name), None)
        return list(others.values())

    def agree_with(self, sizes: Mapping[str, int]) -> bool:
        """Return whether no size was said, or exactly these are."""
        if not self._sizes and self._half is None:
            return True
        return len(self._sizes) == len(sizes) and all(self.of(name) == size for name, size in sizes.items())


def _damaged(position: int) -> errors.StreamError:
    return errors.StreamError("what the stream says of its disks' sizes is damaged: send it again", position=position)


def _crc_of(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "surrogateescape"))


def why_limited(backend: disk.BlockBackend, limit: int) -> str:
    """Say where the limit of a target comes from: from itself, or from the size that was said of the disk."""
    if backend.is_growable or limit < backend.size:
        return f"it was said to have {limit} bytes"
    where = f" {backend.files[0].path!r}" if backend.files else ""
    return f"its target{where} has {limit} bytes"
