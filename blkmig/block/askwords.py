# SPDX-License-Identifier: GPL-2.0-or-later
"""The two records by which a sender compares its disks with what the target holds: ASK and SAME, of kinds 3 and 4.

::

    ASK     u32 number                  1, 2, 3 ...
            u16 index                   of the disk, in the table
            u8 shift                    20, 16 or 12: the pieces have 1 MiB, 64 KiB or 4 KiB
            { u64 offset, u32 count }   so many pieces from there on; of each range

    SAME    u16 index
            { u64 offset, u64 bytes }   what the target holds there is what the source holds; of each range

Ranges ascend, none overlaps the next, and none reaches past the disk's end. Of an ASK they begin at a whole piece, of a
SAME at 4 KiB. Only what ends where the disk ends may be shorter than a piece, or no multiple of 4 KiB. All offsets are
multiples of the piece: here the last block does not start early, as it does where blocks are sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from .. import _core, errors
from ..savevm import digestwords
from . import table

KIND_ASK: Final = 3
KIND_SAME: Final = 4

SHIFTS: Final = (20, 16, 12)
"""A piece has 2 to one of these bytes: first whole blocks, then what differs in finer and finer pieces."""

GRANULE: Final = 1 << SHIFTS[-1]
MAX_RANGES: Final = 4096
MAX_ASKS: Final = 2
"""So many ASKs may be without an answer."""

_ASK: Final = struct.Struct(">IHB")
_ASKED: Final = struct.Struct(">QI")
_SAME: Final = struct.Struct(">H")
_RANGE: Final = struct.Struct(">QQ")

Range = tuple[int, int]
"""Offset and bytes."""


class Ask(NamedTuple):
    """The question for the digests of pieces of a disk."""

    number: int
    disk: int
    shift: int
    ranges: tuple[Range, ...]
    """Each offset, and how many pieces."""

    def encode(self) -> bytes:
        """Return the record's body."""
        return _ASK.pack(self.number, self.disk, self.shift) + b"".join(_ASKED.pack(*each) for each in self.ranges)

    def pieces(self, size: int) -> Iterator[Range]:
        """Yield offset and bytes of each piece of a disk of `size` bytes."""
        for offset, count in self.ranges:
            for start in range(offset, offset + (count << self.shift), 1 << self.shift):
                yield start, min(1 << self.shift, size - start)


def parse_ask(body: bytes, disks: Sequence[table.TableDisk], position: int) -> Ask:
    """Return what an ASK says. Raises :class:`~blkmig.errors.StreamError` for one that no blkmig sends."""
    nbytes = len(body) - _ASK.size
    if nbytes < _ASKED.size or nbytes % _ASKED.size or nbytes // _ASKED.size > digestwords.MAX_PIECES:
        raise _damaged("ASK", f"it has {len(body)} bytes", position)
    number, index, shift = _ASK.unpack_from(body)
    if shift not in SHIFTS:
        raise _damaged("ASK", f"its pieces have 2^{shift} bytes", position)
    size = size_of(index, disks, "ASK", position)
    ranges = tuple(_ASKED.iter_unpack(body[_ASK.size :]))
    if sum(count for _, count in ranges) > digestwords.MAX_PIECES:
        raise _damaged("ASK", f"it asks for more than {digestwords.MAX_PIECES} pieces", position)
    end = 0
    for offset, count in ranges:
        if offset < end or offset % (1 << shift) or not count or offset + (count - 1 << shift) >= size:
            raise _damaged("ASK", f"{count} pieces at {offset} of a disk of {size} bytes", position)
        end = offset + (count << shift)
    return Ask(number, index, shift, ranges)


def encode_same(index: int, ranges: Iterable[Range]) -> bytes:
    """Return the body of a SAME, of at most `MAX_RANGES` ranges."""
    return _SAME.pack(index) + b"".join(_RANGE.pack(*each) for each in ranges)


def parse_same(body: bytes, disks: Sequence[table.TableDisk], position: int) -> tuple[int, list[Range]]:
    """Return index and ranges of a SAME. Raises :class:`~blkmig.errors.StreamError` for one that no blkmig sends."""
    nbytes = len(body) - _SAME.size
    if nbytes < _RANGE.size or nbytes % _RANGE.size or nbytes // _RANGE.size > MAX_RANGES:
        raise _damaged("SAME", f"it has {len(body)} bytes", position)
    (index,) = _SAME.unpack_from(body)
    size = size_of(index, disks, "SAME", position)
    ranges: list[Range] = list(_RANGE.iter_unpack(body[_SAME.size :]))
    end = 0
    for offset, count in ranges:
        stop = offset + count
        if offset < end or offset % GRANULE or not count or stop > size or (stop % GRANULE and stop != size):
            raise _damaged("SAME", f"{count} bytes at {offset} of a disk of {size} bytes", position)
        end = stop
    return index, ranges


def size_of(index: int, disks: Sequence[table.TableDisk], what: str, position: int) -> int:
    """Return the size of a disk of the table; raise if there is none of that index that has bytes."""
    if index >= len(disks) or not disks[index].size:
        raise _damaged(what, f"disk number {index} of {len(disks)}", position)
    return disks[index].size


def blocks_of(offset: int, nbytes: int) -> range:
    """Return the numbers of the blocks that share a byte with a range, none of them starting early."""
    return range(offset // _core.BLOCK_SIZE, -(-(offset + nbytes) // _core.BLOCK_SIZE))


def _damaged(what: str, why: str, position: int) -> errors.StreamError:
    return errors.StreamError(f"a record {what} is damaged: {why}", position=position)
