# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's proofs: hashes of what the disks hold at the hold, made beside the stream.

The target compares them with what it reads back from its storage. Each **piece** of a disk, as large as what one dirty
bit stands for, has one hash in a table at any time, made in one of two ways::

    read again    by a thread, from the storage, after its block was sent in the bulk phase
    as sent       by the migration thread, of its private copy, when a dirty round sends it

**What was put last counts.** A read-again hash holds iff nothing of its piece was put into the stream since that read
began; a put replaces it by the hash as sent::

    thread       fresh := 1 ─► read ─► hash ─► [ fresh? ─► table ]
    migration                  put ─► [ fresh := 0, table ]                [ ]  under the lock

So at the hold the table has the hash of what the disk holds then. For take a piece that was written after its last
read-again hash began to be read. That write leaves a mark, before the hold or by it (write, then mark); the last round
takes all marks, and what is taken is put; so the table has its hash as sent, and the bytes of that are those of the
hold, or there would be another mark. A piece that was not written since then is what the thread has read. Neither
depends on when a mark is made, fetched or taken, so a writer can cause no false alarm.

A block of which nothing was put since it was read again is proven whole, by one hash that goes to the target while the
disk is live. The pieces of all other blocks go after the pause. So do always those of two blocks that overlap, for the
target stores what comes of one of them over what came of the other, and the order of that is the order of their reads.

Nothing is read or hashed in the pause but what the last round sends, and the pause does not begin before each block was
read again once.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterator

from .. import _core, disk
from ..disk import storage
from ..disk.extents import Extents
from . import hashing, prooftable, proofwords


@dataclasses.dataclass(slots=True)
class Shared:
    """What the disks of one migration share; all of it under `lock`."""

    lock: threading.Lock
    table: prooftable.HashTable
    ready: collections.deque[proofwords.Proof] = dataclasses.field(default_factory=collections.deque)
    """What was proven, and is to be told."""


class DiskProof:
    """What proves the disk number `index`, of which `first` is the number of its first hash in the table.

    `bitmap` is its tracker's, one bit of which stands for a piece. `have_read` has blocks read again, soon.
    """

    def __init__(
        self, shared: Shared, index: int, bitmap: disk.DirtyBitmap, first: int, have_read: Callable[[int, int], None]
    ) -> None:
        # Set here, then read-only.
        self._shared = shared
        self.index = index
        self._shape = bitmap.geometry
        self._first = first
        self._piece = bitmap.granularity
        self._per_block = bitmap.bits_per_block
        self._have_read = have_read
        overlaps = self._shape.nblocks > 1 and self._shape.last_offset % _core.BLOCK_SIZE
        self._alone = self._shape.nblocks - 2 * bool(overlaps)  # blocks from this one on overlap

        # Bits are set by the threads without the lock, before they read, and cleared under it.
        self.fresh = _core.Bitmap(self._shape.nblocks * self._per_block)
        """The pieces of which nothing was put since they were last read again, or are being read."""
        # Under the lock.
        self.whole = _core.Bitmap(self._shape.nblocks)
        """The blocks of which that is so for all pieces, and which were read to their end."""

    def range_of(self, block: int) -> tuple[int, int]:
        """Return offset and length of what a block holds inside the exact size."""
        offset, nbytes = self._shape.block_range(block)
        return offset, self._shape.clip(offset, nbytes)

    # -- the migration thread ----------------------------------------------------------------------------------------

    def bulk_sent(self, block: int, count: int) -> None:
        """Have `count` blocks read again that the bulk phase has put."""
        self._have_read(block, count)

    def block_sent(self, block: int, data: memoryview) -> None:
        """Note the hashes of a block that a dirty round has put; `data` is the private copy."""
        self._note(block, [self.range_of(block)], data)

    def pack_sent(self, block: int, extents: Extents, data: memoryview) -> None:
        """Note the hashes of a pack that begins in `block`; `data` has its extents back to back."""
        self._note(block, extents, data)

    def _note(self, block: int, extents: Extents, data: memoryview) -> None:
        # The extents of the last block, which may overlap the one before it, count from where it starts.
        shape, at = self._shape, 0
        is_last = block == shape.nblocks - 1
        origin = shape.last_offset if is_last else 0
        numbers = block * self._per_block if is_last else 0
        found = []
        for offset, nbytes in extents:
            inside = shape.clip(offset, nbytes)
            hashes = hashing.hashes_of(data[at : at + inside], self._piece)
            found.append((numbers + (offset - origin) // self._piece, hashes))
            at += nbytes
        with self._shared.lock:
            for number, hashes in found:
                count = len(hashes) // hashing.HASH_SIZE
                self.fresh.clear_range(number, count)
                first = number // self._per_block
                self.whole.clear_range(first, (number + count - 1) // self._per_block + 1 - first)
                self._shared.table.put(self._first + number, hashes)

    # -- a thread ----------------------------------------------------------------------------------------------------

    def read_again(self, reader: storage.StorageReader, block: int, count: int) -> int:
        """Prove blocks from `block` on by a second read; return how many: one, or a run of up to `count` zeros."""
        self.fresh.set_range(block * self._per_block, count * self._per_block)  # before anything is read
        offset, nbytes = self.range_of(block)
        if zeros := self._zeros(reader, block, count):
            self._keep_zeros(block, zeros)
            return zeros
        data = reader.read(offset, nbytes)
        whole = hashing.hash_of(data)
        pieces = hashing.hashes_of(data, self._piece) if self._per_block > 1 else whole
        with self._shared.lock:
            if self._keep_fresh(block, pieces):
                self._shared.ready.append(proofwords.Proof(self.index, "blocks", block, 1, whole))
        return 1

    def _zeros(self, reader: storage.StorageReader, block: int, count: int) -> int:
        """Return how many whole blocks from `block` on have no data in the storage."""
        shape = self._shape
        offset, _ = shape.block_range(block)
        start = reader.next_data(offset)
        if start >= shape.size:
            return count
        # The last block ends where the disk ends, and there is data before that.
        return max(0, min(start // _core.BLOCK_SIZE - block, count, shape.nblocks - 1 - block))

    def _keep_zeros(self, block: int, count: int) -> None:
        with self._shared.lock:
            run = block
            for each in range(block, block + count):
                if self._keep_fresh(each, None):
                    continue
                self._say_zeros(run, each - run)
                run = each + 1
            self._say_zeros(run, block + count - run)

    def _say_zeros(self, block: int, count: int) -> None:
        if count:
            self._shared.ready.append(proofwords.Proof(self.index, "zeros", block, count))

    def _keep_fresh(self, block: int, hashes: bytes | None) -> bool:
        """Keep the hashes of the pieces of a block that are still fresh; return whether it is whole. Under the lock.

        None: all of them are zeros, for which the table has zero bytes, and at first nothing else.
        """
        start = block * self._per_block
        stop = start + self._per_block
        is_whole = block < self._alone and self.fresh.count(start, stop) == self._per_block
        while start < stop and (area := self.fresh.next_dirty_area(start, stop)) is not None:
            number, count = area
            at = (number - block * self._per_block) * hashing.HASH_SIZE
            if hashes is not None:
                self._shared.table.put(self._first + number, hashes[at : at + count * hashing.HASH_SIZE])
            elif not is_whole:
                self._shared.table.put(self._first + number, bytes(count * hashing.HASH_SIZE))
            start = number + count
        if is_whole:
            self.whole.set(block)
        return is_whole

    # -- after the pause ---------------------------------------------------------------------------------------------

    def pieces(self) -> Iterator[proofwords.Proof]:
        """Yield what proves the blocks that are not proven whole."""
        nblocks = self._shape.nblocks
        block = self.whole.find_next_clear(0)
        while 0 <= block < nblocks:
            _, nbytes = self.range_of(block)
            count = -(-nbytes // self._piece)
            with self._shared.lock:
                found = self._shared.table.get(self._first + block * self._per_block, count)
            yield proofwords.Proof(self.index, "pieces", block, 1, self._spelled(found, nbytes), self._piece)
            block = self.whole.find_next_clear(block + 1) if block + 1 < nblocks else -1

    def _spelled(self, found: bytes, nbytes: int) -> bytes:
        """Return hashes from the table with those of zeros in the place of zero bytes."""
        size = hashing.HASH_SIZE
        zeros = bytes(size)
        if found.find(zeros) < 0:
            return found
        parts = [found[at : at + size] for at in range(0, len(found), size)]
        lengths = [min(self._piece, nbytes - number * self._piece) for number in range(len(parts))]
        of_zeros = {length: hashing.hash_of(bytes(length)) for length in set(lengths)}
        return b"".join(of_zeros[n] if part == zeros else part for part, n in zip(parts, lengths, strict=True))
