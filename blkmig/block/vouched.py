# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver has told of a disk that it compares, so that it believes a SAME only where it may.

A digest vouches for a range from the moment in which the range is read until it is written, or a SAME has used it. So a
SAME that comes without a digest, twice, or after a write is an error of the stream, and never a wrong disk.

One bit a block is enough. The digest of a block comes before those of its pieces, and these say nothing else about it.
Where a part of a block was written or settled, the block is *open*: there each 4 KiB is accounted for, until all of the
block has come. A sender closes a block right after it has opened it.
"""

from __future__ import annotations

from .. import _core, errors
from ..disk import geometry
from . import askwords

MAX_OPEN = 64
"""So many blocks may be open at a time: memory that no stream can make grow."""

_PER_BLOCK = _core.BLOCK_SIZE // askwords.GRANULE


class Vouched:
    """The ranges of a disk of `size` bytes that were vouched for. Under the lock of its disk."""

    def __init__(self, size: int) -> None:
        self._size = size
        nblocks = -(-size // _core.BLOCK_SIZE)
        with geometry.keeping_account(size):
            self._whole = _core.Bitmap(nblocks)
        self._open: dict[int, _Open] = {}

    def read(self, block: int) -> None:
        """Take note that all of `block` was read, and that its digest goes to the sender."""
        self._open.pop(block, None)
        self._whole.set(block)

    def written(self, offset: int, nbytes: int) -> list[int]:
        """Take note of a write, and return the blocks of which all has come with it; of those that are not vouched for,
        nobody keeps account here."""
        closed = []
        for block in self._touched(offset, nbytes):
            touched, filled, all_of_it = self._masks(block, offset, nbytes)
            if filled == all_of_it:
                self._whole.clear(block)
                self._open.pop(block, None)
                closed.append(block)
            else:
                part = self._opened(block)
                part.vouched &= ~touched
                closed += self._came(block, part, filled, all_of_it)
        return closed

    def settle(self, offset: int, nbytes: int, position: int) -> list[int]:
        """Use what was vouched for in a range, and return the blocks of which all has come with it.

        Raises :class:`~blkmig.errors.StreamError` for a range for which no digest vouches; `position` is where it is
        said.
        """
        closed = []
        for block in askwords.blocks_of(offset, nbytes):
            touched, _, all_of_it = self._masks(block, offset, nbytes)
            if touched == all_of_it and self._whole.take(block):
                closed.append(block)
                continue
            is_known = block in self._open or self._whole.test(block)
            part = self._opened(block) if is_known else _Open(0)
            if touched & ~part.vouched:
                raise errors.StreamError(
                    f"SAME for {nbytes} bytes at {offset}, and no digest of that was asked for and answered, or it was "
                    "written since",
                    position=position,
                )
            part.vouched &= ~touched
            closed += self._came(block, part, touched, all_of_it)
        return closed

    def check(self, position: int) -> None:
        """Raise :class:`~blkmig.errors.StreamError` if a stream has left too many blocks open."""
        if len(self._open) > MAX_OPEN:
            raise errors.StreamError(
                f"parts of {len(self._open)} blocks have come, and what is the same of them is not said",
                position=position,
            )

    def _touched(self, offset: int, nbytes: int) -> list[int]:
        """Return the blocks in a range of which anything is known; a run of zeros may be as long as the disk."""
        blocks = askwords.blocks_of(offset, nbytes)
        found = [block for block in self._open if block in blocks]
        start, stop = blocks.start, min(blocks.stop, len(self._whole))
        while start < stop and (block := self._whole.find_next_set(start, stop)) >= 0:
            found.append(block)
            start = block + 1
        return found

    def _opened(self, block: int) -> _Open:
        if block not in self._open:
            self._whole.clear(block)
            self._open[block] = _Open(self._all_of(block))
        return self._open[block]

    def _came(self, block: int, part: _Open, mask: int, all_of_it: int) -> list[int]:
        part.came |= mask
        if part.came != all_of_it:
            return []
        del self._open[block]
        return [block]

    def _all_of(self, block: int) -> int:
        nbytes = min(_core.BLOCK_SIZE, self._size - block * _core.BLOCK_SIZE)
        return (1 << -(-nbytes // askwords.GRANULE)) - 1

    def _masks(self, block: int, offset: int, nbytes: int) -> tuple[int, int, int]:
        """Return the granules of a block that share a byte with a range, those that lie in it, and all that it has."""
        begin, all_of_it = block * _core.BLOCK_SIZE, self._all_of(block)
        start, stop = max(offset - begin, 0), min(offset + nbytes - begin, _core.BLOCK_SIZE)
        touched = _bits(start // askwords.GRANULE, -(-stop // askwords.GRANULE))
        last = _PER_BLOCK if offset + nbytes >= self._size else stop // askwords.GRANULE
        filled = _bits(-(-start // askwords.GRANULE), last)
        return touched & all_of_it, filled & all_of_it, all_of_it


class _Open:
    """A block of which a part has come: its granules that are vouched for, and those that have come."""

    __slots__ = ("came", "vouched")

    def __init__(self, vouched: int) -> None:
        self.vouched = vouched
        self.came = 0


def _bits(start: int, stop: int) -> int:
    return (1 << stop) - (1 << start) if stop > start else 0
