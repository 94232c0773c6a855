# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks of a disk have come, of a stream that says the disk's size at its very end, or never."""

from __future__ import annotations

from .. import _core, errors

MAX_INFERRED_BYTES = 1 << 46
"""No disk is believed to be larger than 64 TiB unless its size was said: a damaged sector must not cost memory."""


class BlockCoverage:
    """One bit per block that has come, for a disk of at most `limit` bytes called `name`. For one thread."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.bits = _core.Bitmap(-(-limit // _core.BLOCK_SIZE))
        self.end_sector = 0
        """Where the farthest block ends."""

        self._tail_sector: int | None = None
        """Where the last block starts, if it is not at a whole MiB."""

    def check(self, sector: int, count: int, position: int) -> int:
        """Return the number of the first of `count` blocks from `sector` on, read at `position` of the stream.

        Raises :class:`~blkmig.errors.OutOfRange` unless they are blocks of the disk.
        """
        if sector % _core.SECTORS_PER_BLOCK and not (count == 1 and self._is_tail(sector)):
            raise self._outside(sector, "which is not the start of a block", position)
        last = sector + (count - 1) * _core.SECTORS_PER_BLOCK
        if last << _core.SECTOR_BITS >= self.limit:
            raise self._outside(
                last, f"outside the {self.limit} bytes of the target: give one as large as the source's disk", position
            )
        # The last block may start early, over its neighbour; that does not change its number.
        return -(-sector // _core.SECTORS_PER_BLOCK)

    def add(self, block: int, count: int) -> int:
        """Note that `count` blocks from `block` on have come, and return how many of them had come before."""
        is_new = block * _core.SECTORS_PER_BLOCK >= self.end_sector  # nothing came from here on: the usual case
        before = 0 if is_new else self.bits.count(block, block + count)
        if before < count:
            self.bits.set_range(block, count)
        last = block + count - 1
        is_tail = self._tail_sector is not None and last == -(-self._tail_sector // _core.SECTORS_PER_BLOCK)
        start = self._tail_sector if is_tail and self._tail_sector else last * _core.SECTORS_PER_BLOCK
        self.end_sector = max(self.end_sector, start + _core.SECTORS_PER_BLOCK)
        return before

    def inferred_size(self) -> int:
        """Return the size of a disk that ends where its farthest block ends."""
        return self.end_sector << _core.SECTOR_BITS

    def fits(self, size: int) -> bool:
        """Return whether all blocks that came are blocks of a disk of `size` bytes."""
        nblocks = -(-size // _core.BLOCK_SIZE)
        if nblocks < len(self.bits) and self.bits.find_next_set(nblocks) >= 0:
            return False
        return self._tail_sector is None or self._tail_sector + _core.SECTORS_PER_BLOCK == -(-size // _core.SECTOR_SIZE)

    def missing(self, size: int) -> list[tuple[int, int]]:
        """Return the ranges (first block, count) of a disk of `size` bytes that never came."""
        nblocks = -(-size // _core.BLOCK_SIZE)
        stop = min(nblocks, len(self.bits))
        ranges = []
        block = self.bits.find_next_clear(0, stop)
        while block >= 0:
            end = self.bits.find_next_set(block, stop)
            end = stop if end < 0 else end
            ranges.append((block, end - block))
            block = self.bits.find_next_clear(end, stop) if end < stop else -1
        if nblocks > stop:
            ranges.append((stop, nblocks - stop))
        return ranges

    def _is_tail(self, sector: int) -> bool:
        """Return whether the last block starts at `sector`, not at a whole MiB; there is only one such sector."""
        if self._tail_sector is None and sector + _core.SECTORS_PER_BLOCK <= -(-self.limit // _core.SECTOR_SIZE):
            self._tail_sector = sector
        return sector == self._tail_sector

    def _outside(self, sector: int, why: str, position: int) -> errors.OutOfRange:
        """Return the error for a block that cannot be."""
        return errors.OutOfRange(
            f"disk {self.name!r}: a block at sector {sector}, {why}", device=self.name, sector=sector, position=position
        )
