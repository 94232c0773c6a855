# SPDX-License-Identifier: GPL-2.0-or-later
"""One disk that is being received: where each block goes.

A target either has a fixed size (it was there before), or it grows with the blocks that come and is cut to size at the
end, when the disk's size is certain: what the stream says of it before the first block is not trusted (see `sizes`).
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

from .. import _core, channel, disk, errors, stats
from ..disk import geometry
from ..passage import arrival
from . import basewords, buffers, checks, compressed, coverage, digests, savings, sizes, vouched

GROWTH_BYTES = 64 << 20
"""A growing target grows in steps of this size, so that not every block changes the file's size."""

ZEROS_AT_ONCE = 4096
"""Blocks of zeros that are hashed in one piece of memory, whatever a stream says of its base."""


class BlkLoadDevice:
    """The receiving end of one disk. It belongs to the thread that loads the stream."""

    def __init__(
        self,
        backend: disk.BlockBackend,
        statistics: stats.DiskStatistics,
        *,
        size: int | None = None,
        is_size_sure: bool = True,
        is_new: bool = False,
    ) -> None:
        """Load into `backend`, no more than `size` bytes if somebody said how large it is; `is_new`: made for this.

        A size that only the stream says is not sure: it may cost no more memory than a size that nobody knows.
        """
        self.backend = backend
        self.arrival = arrival(backend)
        self.statistics = statistics
        self.is_new = is_new or backend.is_growable
        limit = coverage.MAX_INFERRED_BYTES if size is None else size
        limit = limit if backend.is_growable else min(sys.maxsize if size is None else size, backend.size)
        self.coverage = coverage.BlockCoverage(statistics.name, limit, why_limited=sizes.why_limited(backend, limit))
        self.buffers = buffers.LoadBuffers()  # of all disks of the stream, from `join` on; until then this disk's own
        # Held while the disk is used, where another thread reads it, too: see `compare`.
        self.turn: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self._vouched: vouched.Vouched | None = None  # under `turn`
        self._is_size_sure = not backend.is_growable or (size is not None and is_size_sure)
        self._shape = geometry.BlockGeometry(limit)
        self._savings = savings.Savings()
        self._buf: _core.BlockBuffer | None = None  # lent by `buffers`, while blocks come
        self._zeroes = range(0)  # where the target said that it reads as zeros; nothing has come for it since

    def load_block(self, f: channel.InputQEMUFile, sector: int, position: int) -> None:
        """Write one block when all of it has come; what lies past the disk's end is slack. Blocks."""
        block = self.coverage.check(sector, 1, position)
        self._check_is_one_disk(block, 1, position)
        if self._buf is None:
            self._buf = self.buffers.lend(self)
        if self.buffers.frames.nbytes:
            self._get_frame(f, _core.BLOCK_SIZE, sector, sector << _core.SECTOR_BITS)
        else:
            f.get_block(self._buf)
            if self.buffers.checksums.is_on:
                self._check_payload(f, self._buf.payload, sector, sector << _core.SECTOR_BITS)
        offset, nbytes = self._place(sector, 1)
        if offset < self._zeroes.stop and offset + nbytes > self._zeroes.start:
            self._zeroes = range(min(offset + nbytes, self._zeroes.stop), self._zeroes.stop)
        try:
            with self.turn:
                self.backend.write_block(self._buf, offset, nbytes)
                if self._vouched is not None:
                    self._vouched.written(offset, nbytes)
        except OSError as error:
            label = self.backend.name
            raise errors.DeviceError("cannot write", device=label, cause=error, offset=offset, nbytes=nbytes) from error
        self._came(block, 1)

    def load_pack(self, f: channel.InputQEMUFile, extents: disk.Extents, position: int, number: int) -> None:
        """Write the extents of a pack when all of it has come; what lies past the disk's end is slack. Blocks.

        No earlier block comes after it: `write_extents` writes behind what `write_block` has put off, see `disk`.
        """
        self.coverage.check_pack(extents, position)
        if self._buf is None:
            self._buf = self.buffers.lend(self)
        total, start, (last, nbytes) = sum(nbytes for _, nbytes in extents), extents[0][0], extents[-1]
        if self.buffers.frames.nbytes:
            self.buffers.zeros.check_none(position)
            self._get_frame(f, total, start, start)
        else:
            check = self._check_payload if self.buffers.checksums.is_on else None
            self._savings.by_zeros += self.buffers.zeros.get(f, self._buf, extents, total, check)
        if self.backend.is_growable and last + nbytes > self.backend.size:
            self._grow(min(last + nbytes, self.coverage.limit))
        inside = [*extents[:-1], (last, min(nbytes, self.backend.size - last))]
        if start < self._zeroes.stop and last + nbytes > self._zeroes.start:
            self._zeroes = range(0)
        with self.turn:
            self.backend.write_extents(self._buf, inside)
            if self._vouched is not None:
                for offset, nbytes in inside:
                    self.coverage.add_parts(self._vouched.written(offset, nbytes), self._shape, position)
                self._vouched.check(position)
        self.coverage.add_pack(extents, number=number)
        self._savings.pack_went(extents, total, self._shape, blocks=self.statistics.blocks)
        self.statistics.packs += 1
        self.statistics.pack_bytes += total
        self._note_savings()

    def load_zero_run(self, sector: int, count: int, position: int) -> None:
        """Make `count` blocks from `sector` on read as zeros. Blocks."""
        block = self.coverage.check(sector, count, position)
        self._check_is_one_disk(block, count, position)
        offset, nbytes = self._place(sector, count)
        with self.turn:
            if not (self._zeroes.start <= offset and offset + nbytes <= self._zeroes.stop):
                self._zeroes = range(offset, self.backend.zeroes_end(offset))
                if offset + nbytes > self._zeroes.stop:
                    self.backend.write_zeroes(offset, nbytes)
            if self._vouched is not None:
                self._vouched.written(offset, nbytes)
        self._came(block, count, is_zero=True)
        self.statistics.zero_blocks += count
        self._savings.zeros_went(block, count, blocks=self.statistics.blocks)
        self._note_savings()

    def _note_savings(self) -> None:
        self.statistics.saved_by_zeros = self._savings.by_zeros
        self.statistics.saved_by_granularity = self._savings.by_granularity

    def compare(self, size: int) -> None:
        """Have another thread read the disk, of `size` bytes, for a sender that compares: see `answering`."""
        self.turn = threading.Lock()
        self._vouched = vouched.Vouched(size)

    def read_to_compare(self, buf: _core.BlockBuffer, offset: int, nbytes: int, *, vouches: bool) -> bool:
        """Read what is asked for of one block; return whether it is zeros, maybe not read. Any thread. Blocks."""
        assert self._vouched is not None
        with self.turn:
            is_hole = self.backend.zeroes_end(offset) >= offset + nbytes
            is_zero = is_hole or self.backend.read_block(buf, offset, nbytes)
            if vouches:
                self._vouched.read(offset // _core.BLOCK_SIZE)
        return is_zero

    def load_same(self, ranges: Iterable[tuple[int, int]], position: int) -> None:
        """Take note that the disk holds already what the source holds in these ranges.

        Raises :class:`~blkmig.errors.StreamError` where no digest vouches for it.
        """
        assert self._vouched is not None
        with self.turn:
            for offset, nbytes in ranges:
                self.coverage.add_parts(self._vouched.settle(offset, nbytes, position), self._shape, position)
                self.statistics.same_bytes += nbytes
            self._vouched.check(position)

    def join(self, shared: buffers.LoadBuffers, room: coverage.CoverageRoom) -> None:
        """Share the buffers of a stream's disks, and the room for what is not known of their sizes."""
        self.buffers = shared
        self.coverage.room = None if self._is_size_sure else room

    def link_lost(self, counts: coverage.CoverageCounts) -> None:
        """Count on from `counts`; what came of a half payload is gone with its buffer. Blocks until all is written."""
        self.let_go()
        self.coverage.rewind(counts)
        self.backend.drain()

    def let_go(self) -> None:
        """Hold no memory, and no pipes; what of a payload has come is gone. For the thread that loads."""
        self._buf = None
        self.buffers.forget()

    def rest(self) -> None:
        """Store what waits and hold no memory until the next block comes. Blocks."""
        self._buf = None
        with self.turn:
            self.backend.rest()

    def _get_frame(self, f: channel.InputQEMUFile, nbytes: int, seed: int, offset: int) -> None:
        """Get a payload of `nbytes` that comes as a frame; what has a checksum is the frame. Blocks."""
        assert self._buf is not None
        position, frame = f.position, self.buffers.frames.get(f, nbytes)
        if self.buffers.checksums.is_on:
            self._check_payload(f, frame, seed, offset)
        compressed.unpack(frame, self._buf, nbytes, position)
        self.statistics.saved_by_compression += nbytes - len(frame)

    def _check_payload(self, f: channel.InputQEMUFile, payload: bytes | memoryview, seed: int, offset: int) -> None:
        """Raise :class:`~blkmig.errors.DamagedOnTheWay` unless it is what the stream has said, before it is stored."""
        self.buffers.checksums.check(payload, seed, uri=f.uri, device=self.statistics.name, offset=offset)

    def _check_is_one_disk(self, block: int, count: int, position: int) -> None:
        """Refuse a block that comes again without a name: it may well be the block of another disk.

        A QEMU sends every node of ``-blockdev`` without a name, an image and the file below it one after the other.
        """
        if not self.statistics.name and self.coverage.bits.count(block, block + count):
            raise errors.UnsupportedStream(checks.NAMELESS_TWICE, position=position)

    def _place(self, sector: int, count: int) -> tuple[int, int]:
        """Return (offset, nbytes) of blocks without the slack; the target grows if need be."""
        offset = sector << _core.SECTOR_BITS
        end = offset + count * _core.BLOCK_SIZE
        if self.backend.is_growable and end > self.backend.size:
            self._grow(end)
        return offset, min(end, self.backend.size) - offset

    def _grow(self, end: int) -> None:
        """Make the target reach `end`, and farther if it may."""
        for size in (-(-end // GROWTH_BYTES) * GROWTH_BYTES, end):
            try:
                with self.turn:
                    self.backend.resize(min(size, self.coverage.limit))
                return
            except errors.DeviceError as error:
                if error.errno != errno.EFBIG or size == end:
                    raise  # EFBIG at first: so large a file is not allowed here; try the size that is needed

    def _came(self, block: int, count: int, *, is_zero: bool = False) -> None:
        """Count blocks that were written."""
        self.statistics.resent_blocks += self.coverage.add(block, count, is_zero=is_zero)
        self.statistics.blocks += count

    def settle(self, size: int, source: stats.SizeSource) -> None:
        """Give the disk its exact size, and a target that grew the same.

        Blocks outside of this size are an error. So is a target that is smaller: blocks behind its end were taken for
        slack.
        """
        if size > self.backend.size and not self.backend.is_growable:
            raise errors.DeviceError(
                "is too small", device=self.statistics.name, cause=f"it has {self.backend.size} bytes, the disk {size}"
            )
        if not self.coverage.fits(size):
            raise errors.DeviceError(
                "got blocks that it cannot have", device=self.statistics.name, cause=f"its size is {size} bytes"
            )
        self.statistics.size, self.statistics.size_source = size, source
        if self.backend.is_growable and size != self.backend.size:  # setting it writes the last page, as memory has it
            self.backend.resize(size)

    def digest(
        self,
        check_cancelled: Callable[[], None] = lambda: None,
        *,
        combine: Callable[[bytearray], str] = digests.combine_digests,
    ) -> str:
        """Read back the whole disk and return its digest, as the sender computes it. Blocks.

        `combine` makes one digest of the digests of all blocks. Call it after `settle`. What the target holds of a base
        is part of the disk. It calls `check_cancelled`, which may raise, before each block.
        """
        assert self.statistics.size is not None
        shape = geometry.BlockGeometry(self.statistics.size)
        with geometry.keeping_account(shape.size):
            found = bytearray(shape.nblocks * digests.DIGEST_SIZE)
        buf = self._buf or self.buffers.lend(self)
        for block in range(shape.nblocks):
            check_cancelled()
            digest = self._digest_of_block(buf, shape, block)
            found[block * digests.DIGEST_SIZE : (block + 1) * digests.DIGEST_SIZE] = digest
        return combine(found)

    def digest_of_run(
        self, shape: geometry.BlockGeometry, first: int, count: int, check_cancelled: Callable[[], None]
    ) -> bytes:
        """Return the digest of `count` blocks from `first` on of a disk of that geometry, as the sender computes it.

        Blocks. It calls `check_cancelled`, which may raise, before each block that it reads; what the target knows to
        be zeros is not read.
        """
        if self._buf is None:
            self._buf = self.buffers.lend(self)
        buf, stop = self._buf, first + count

        def parts() -> Iterator[bytes]:
            block = first
            while block < stop:
                check_cancelled()
                known = self.backend.zeroes_end(block * _core.BLOCK_SIZE) // _core.BLOCK_SIZE
                most = min(stop, shape.nblocks - 1, block + ZEROS_AT_ONCE)  # the last block may start early
                zeros = max(0, min(known, most) - block)
                yield digests.ZERO_DIGEST * zeros or self._digest_of_block(buf, shape, block)
                block += max(zeros, 1)

        return basewords.digest_of_run(parts())

    def _digest_of_block(self, buf: _core.BlockBuffer, shape: geometry.BlockGeometry, block: int) -> bytes:
        offset, nbytes = shape.block_range(block)
        is_zero = self.backend.read_block(buf, offset, shape.clip(offset, nbytes))
        return digests.ZERO_DIGEST if is_zero else digests.digest_of(buf.payload)
