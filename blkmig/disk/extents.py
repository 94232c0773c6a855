# SPDX-License-Identifier: GPL-2.0-or-later
"""Several short extents of a disk that are read, or written, together: one after the other, where nothing is better.

An extent is (offset, nbytes). Their bytes stand in a block buffer one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from .. import _core, errors, units

Extents = list[tuple[int, int]]

MAX_EXTENTS = 256
"""So many go together at most, 1 MiB in all."""


class Disk(Protocol):
    """What is asked of a disk that has no better way."""

    name: str

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block."""

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Write a block."""


def parts(blk: _core.BlockBuffer, extents: Extents) -> Iterator[tuple[int, memoryview]]:
    """Yield the offset of each extent, a plain int, and its place in `blk`."""
    data, done = blk.data, 0
    for offset, nbytes in extents:
        if type(offset) is not int or type(nbytes) is not int:  # of others, as numpy's, sums may overflow
            offset, nbytes = units.index(offset), units.index(nbytes)
        yield offset, data[done : done + nbytes]
        done += nbytes


def parts_inside(blk: _core.BlockBuffer, extents: Extents, size: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the same as far as it lies inside a disk of `size` bytes; the rest of each place is zeros by then."""
    for offset, part in parts(blk, extents):
        inside = max(0, min(part.nbytes, size - offset))
        if inside < part.nbytes:
            part[inside:] = bytes(part.nbytes - inside)
        if inside:
            yield offset, part[:inside]


def read_each(disk: Disk, blk: _core.BlockBuffer, extents: Extents) -> None:
    """Read each extent as if it were a block, and copy it to its place."""
    one = _core.BlockBuffer("own")
    for offset, part in parts(blk, extents):
        with errors.failing("cannot read", device=disk.name, offset=offset, nbytes=part.nbytes):
            disk.read_block(one, offset, part.nbytes)
        part[:] = one.data[: part.nbytes]
    blk.gathered()


def write_each(disk: Disk, blk: _core.BlockBuffer, extents: Extents) -> None:
    """Copy each extent, and write it as if it were a block."""
    one = _core.BlockBuffer("own")
    for offset, part in parts(blk, extents):
        one.data[: part.nbytes] = part
        one.filled(part.nbytes)
        with errors.failing("cannot write", device=disk.name, offset=offset, nbytes=part.nbytes):
            disk.write_block(one, offset, part.nbytes)
