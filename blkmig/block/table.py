# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of disks with which a section ``blkmig`` begins: what they are called, and how large they are, exactly.

::

    u64 count << 9 | TABLE      how many disks
    u32 n                       bytes that follow, without the last word
    { u8 length, name           of each disk
      u64 size                  bytes, exact
      u32 granule               bytes: a power of two, 4096 to 1 MiB
      u8 flags }                bit 0: only the disk's top layer comes; bit 1: it is resumed
    u32 CRC-32 of the n bytes

A receiver believes no size: it uses them to refuse early, and the description at the end must say the same.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from .. import _core, channel, errors
from . import wire

_HEAD: Final = struct.Struct(">QI")
_TAIL: Final = struct.Struct(">QIB")
_LEAST, _MOST = 1 + _TAIL.size, 1 + 255 + _TAIL.size
_MAX_SIZE: Final = (1 << 63) - 1
_SHARED_BASE: Final = 1
_RESUMES: Final = 2
_FLAGS: Final = _SHARED_BASE | _RESUMES

MIN_GRANULE: Final = 4096


class TableDisk(NamedTuple):
    """One disk of the table."""

    name: bytes
    size: int
    granule: int = _core.BLOCK_SIZE
    shared_base: bool = False
    resumes: bool = False
    """The target goes on with what an earlier migration has left of it, and the two compare."""

    @property
    def label(self) -> str:
        """Return the name as a text."""
        return self.name.decode("utf-8", "surrogateescape")

    def encode(self) -> bytes:
        """Return the disk's entry."""
        return bytes([len(self.name)]) + self.name + _TAIL.pack(self.size, self.granule, self._flags)

    @property
    def _flags(self) -> int:
        return self.shared_base * _SHARED_BASE + self.resumes * _RESUMES


def encode(disks: Sequence[TableDisk]) -> bytes:
    """Return the record for `disks`. Raises :class:`~blkmig.errors.ParameterError` for none, or for too many."""
    if not 1 <= len(disks) <= wire.MAX_DISKS:
        raise errors.ParameterError(f"a section 'blkmig' carries 1 to {wire.MAX_DISKS} disks, not {len(disks)}")
    body = b"".join(disk.encode() for disk in disks)
    head = _HEAD.pack(len(disks) << _core.SECTOR_BITS | wire.FLAG_TABLE, len(body))
    return head + body + struct.pack(">I", zlib.crc32(body))


def flush_records(number: int) -> bytes:
    """Return the payload of a PART that asks the receiver to bring everything to stable storage."""
    return records(struct.pack(">Q", number << _core.SECTOR_BITS | wire.FLAG_FLUSH))


def barrier_records(number: int) -> bytes:
    """Return the payload of a PART that has what came before it acknowledged, once it is on stable storage."""
    return records(struct.pack(">Q", number << _core.SECTOR_BITS | wire.FLAG_BARRIER))


def records(*each: bytes) -> bytes:
    """Return the payload of a PART that has these records."""
    return b"".join(each) + struct.pack(">Q", _core.FLAG_EOS)


def get_table(f: channel.InputQEMUFile, count: int, position: int) -> tuple[TableDisk, ...]:
    """Read the rest of the record of `count` disks, whose first word stands at `position`.

    Raises :class:`~blkmig.errors.StreamError` for what no blkmig sends.
    """
    if not 1 <= count <= wire.MAX_DISKS:
        raise _damaged(f"{count} disks", position)
    nbytes = f.get_be32()
    if not count * _LEAST <= nbytes <= count * _MOST:
        raise _damaged(f"{nbytes} bytes for {count} disks", position)
    body = f.get_buffer(nbytes)
    if f.get_be32() != zlib.crc32(body):
        raise _damaged("a wrong checksum", position)
    disks = tuple(_parse(body, count, position))
    if len({disk.name for disk in disks}) < count:
        raise _damaged("two disks of the same name", position)
    if len({disk.resumes for disk in disks}) > 1:
        raise _damaged("disks that are resumed, and others", position)
    return disks


def _parse(body: bytes, count: int, position: int) -> list[TableDisk]:
    disks: list[TableDisk] = []
    at = 0
    while at < len(body) and len(disks) < count:
        end = at + 1 + body[at]
        if end + _TAIL.size > len(body):
            break
        size, granule, flags = _TAIL.unpack_from(body, end)
        layers, resumes = bool(flags & _SHARED_BASE), bool(flags & _RESUMES)
        disks.append(TableDisk(body[at + 1 : end], size, granule, layers, resumes))
        if size > _MAX_SIZE or flags & ~_FLAGS or (layers and resumes) or not _is_granule(granule):
            raise _damaged(f"disk {disks[-1].label!r} of {size} bytes, granule {granule}, flags {flags:#x}", position)
        at = end + _TAIL.size
    if at != len(body) or len(disks) != count:
        raise _damaged(f"no entries of {count} disks", position)
    return disks


def _is_granule(value: int) -> bool:
    return MIN_GRANULE <= value <= _core.BLOCK_SIZE and not value & (value - 1)


def _damaged(what: str, position: int) -> errors.StreamError:
    return errors.StreamError(f"the table of the disks is damaged: it has {what}; send it again", position=position)
