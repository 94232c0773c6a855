# SPDX-License-Identifier: GPL-2.0-or-later
"""One disk that is being received: where each block goes, and which blocks have come.

The stream does not say how large a disk is until its very end, and a stream from QEMU never does. So a target is
either of fixed size (it was there before), or it grows with the blocks that come and is cut to size at the end.
"""

from __future__ import annotations

from .. import _core, disk, errors, stats
from ..disk import geometry as disk_geometry
from . import send

GROWTH_BYTES = 64 << 20
"""A growing target grows in steps of this size, so that not every block changes the file's size."""

MAX_GROWN_BYTES = 1 << 46
"""No disk grows beyond 64 TiB unless its size was said: a damaged sector must not make an enormous file."""

FOOTER_TYPE = 0x7E


class BlkLoadDevice:
    """The receiving end of one disk. It belongs to the thread that loads the stream.

    `position` in the methods is where the record stands in the stream, for messages.
    """

    def __init__(self, backend: disk.BlockBackend, statistics: stats.DiskStatistics) -> None:
        self.backend = backend
        self.statistics = statistics
        self._limit = MAX_GROWN_BYTES if backend.is_growable else backend.size
        self.coverage = _core.Bitmap(-(-self._limit // _core.BLOCK_SIZE))
        """One bit per block that has come."""

        self.end_sector = 0
        """Where the farthest block ends."""

        self._tail_sector: int | None = None
        """Where the last block starts, if it is not at a whole MiB."""

    # -- blocks ------------------------------------------------------------------------------------------------------

    def load_block(self, sector: int, buf: _core.BlockBuffer, position: int) -> None:
        """Write one block; what lies past the end of the disk is slack and is ignored. Blocks."""
        offset, nbytes = self._place(sector, 1, position)
        self.backend.write_block(buf, offset, nbytes)
        self._came(sector, 1)

    def load_zero_run(self, sector: int, count: int, position: int) -> None:
        """Make `count` blocks from `sector` on read as zeros. Blocks."""
        offset, nbytes = self._place(sector, count, position)
        self.backend.write_zeroes(offset, nbytes)
        self._came(sector, count)
        self.statistics.zero_blocks += count

    def _place(self, sector: int, count: int, position: int) -> tuple[int, int]:
        """Check that the blocks lie inside the disk and return (offset, nbytes) without the slack; grow if need be."""
        offset = sector << _core.SECTOR_BITS
        last = offset + (count - 1) * _core.BLOCK_SIZE
        if sector % _core.SECTORS_PER_BLOCK and not self._is_tail(sector):
            raise errors.OutOfRange(
                f"disk {self.statistics.name!r}: sector {sector} is not the start of a block",
                device=self.statistics.name,
                sector=sector,
                position=position,
            )
        if last >= self._limit:
            raise errors.OutOfRange(
                f"disk {self.statistics.name!r}: a block at sector {last >> _core.SECTOR_BITS} lies outside "
                f"the target of {self._limit} bytes; give a target as large as the source's disk",
                device=self.statistics.name,
                sector=last >> _core.SECTOR_BITS,
                position=position,
            )
        end = last + _core.BLOCK_SIZE
        if self.backend.is_growable and end > self.backend.size:
            self.backend.resize(min(-(-end // GROWTH_BYTES) * GROWTH_BYTES, self._limit))
        return offset, min(end, self.backend.size) - offset

    def _is_tail(self, sector: int) -> bool:
        """Return whether the last block starts at `sector`, not at a whole MiB; there is only one such sector."""
        if self._tail_sector is None and sector + _core.SECTORS_PER_BLOCK <= -(-self._limit // _core.SECTOR_SIZE):
            self._tail_sector = sector
        return sector == self._tail_sector

    def _came(self, sector: int, count: int) -> None:
        """Note that `count` blocks from `sector` on have come."""
        block = -(-sector // _core.SECTORS_PER_BLOCK)  # the last block may start early; its number does not change
        if count == 1:
            if self.coverage.test(block):
                self.statistics.resent_blocks += 1
            else:
                self.coverage.set(block)
        else:
            self.statistics.resent_blocks += self.coverage.count(block, block + count)
            self.coverage.set_range(block, count)
        self.statistics.blocks += count
        self.end_sector = max(self.end_sector, sector + count * _core.SECTORS_PER_BLOCK)

    # -- the end -----------------------------------------------------------------------------------------------------

    def settle(self, size: int, source: stats.SizeSource) -> None:
        """Give the disk its exact size, and a target that grew the same. Blocks that came behind it are an error."""
        nblocks = -(-size // _core.BLOCK_SIZE)
        if nblocks < len(self.coverage) and self.coverage.find_next_set(nblocks) >= 0:
            raise errors.DeviceError(
                "has blocks behind its end", device=self.statistics.name, cause=f"its size was given as {size} bytes"
            )
        self.statistics.size, self.statistics.size_source = size, source
        if self.backend.is_growable:
            self.backend.resize(size)

    def missing(self) -> list[tuple[int, int]]:
        """Return the ranges (first block, count) below the disk's size that never came; call it after `settle`."""
        assert self.statistics.size is not None
        ranges = []
        nblocks = -(-self.statistics.size // _core.BLOCK_SIZE)
        stop = min(nblocks, len(self.coverage))
        block = self.coverage.find_next_clear(0, stop)
        while block >= 0:
            end = self.coverage.find_next_set(block, stop)
            end = stop if end < 0 else end
            ranges.append((block, end - block))
            block = self.coverage.find_next_clear(end, stop) if end < stop else -1
        if nblocks > stop:
            ranges.append((stop, nblocks - stop))
        return ranges

    def digest(self) -> str:
        """Read back every block that came and return the digest of the disk, as the sender computes it. Blocks.

        Call it after `settle`.
        """
        assert self.statistics.size is not None
        geometry = disk_geometry.BlockGeometry(self.statistics.size)
        digests = bytearray(geometry.nblocks * send.DIGEST_SIZE)
        buf = _core.BlockBuffer()
        block = self.coverage.find_next_set(0, geometry.nblocks)
        while block >= 0:
            offset, nbytes = geometry.block_range(block)
            self.backend.read_block(buf, offset, geometry.clip(offset, nbytes))
            digests[block * send.DIGEST_SIZE : (block + 1) * send.DIGEST_SIZE] = send.digest_of(buf.payload)
            block = self.coverage.find_next_set(block + 1, geometry.nblocks) if block + 1 < geometry.nblocks else -1
        return send.combine_digests(digests)
