# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of a block section in one thread and without system calls, so that every interleaving can be played.

A disk in memory whose holes and layers are known byte by byte, a stream that applies each record to the target's image
as it is put, and reads that complete in any order.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from blkmig import _core, disk
from blkmig.block import device, reads

MIB = 1 << 20
CLUSTER = 1 << 16


class LayeredDisk(disk.BlockBackend):
    """A disk that shows `top` where it is allocated and `base` elsewhere; `step` is called around every verb."""

    def __init__(self, content: bytes, *, base: bytes | None = None, name: str = "d") -> None:
        self.name = name
        self.size = len(content)
        self.image = bytearray(content)
        self.allocated = bytearray(-(-self.size // CLUSTER)) if base is not None else None
        self.trackers: list[disk.DirtyBitmap] = []
        self.held = False
        self.longest_answer = self.size
        self.step: Callable[[], None] = lambda: None
        self.reads: list[int] = []

    # -- the guest ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes, offset: int) -> None:
        """Write and mark, unless writers are held."""
        if self.held:
            return
        self.image[offset : offset + len(data)] = data
        if self.allocated is not None:
            for cluster in range(offset // CLUSTER, -(-(offset + len(data)) // CLUSTER)):
                self.allocated[cluster] = 1
        for tracker in self.trackers:
            tracker.mark(offset, len(data))

    def random_write(self, rng: random.Random) -> None:
        """Write, zero, or touch the last blocks."""
        nbytes = min(self.size, rng.choice((1, 512, CLUSTER, MIB, 3 * MIB // 2)))
        low = max(0, self.size - 2 * MIB) if rng.random() < 0.4 else 0
        offset = rng.randrange(low, self.size - nbytes + 1) if self.size - nbytes >= low else self.size - nbytes
        self.write(bytes(nbytes) if rng.random() < 0.5 else bytes([rng.randrange(1, 256)]) * nbytes, offset)

    # -- the contract ------------------------------------------------------------------------------------------------

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        self.reads.append(offset)
        self.step()
        count = max(0, min(nbytes, self.size - offset))
        blk.data[:count] = self.image[offset : offset + count]
        self.step()
        return blk.filled(count)

    def next_data(self, offset: int) -> tuple[int, int] | None:
        self.step()
        answer = self._first(offset, self.size, self._is_data)
        self.step()
        return answer

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        end = min(offset + nbytes, self.size)
        if self.allocated is None:
            return (offset, end) if offset < end else None
        self.step()
        answer = self._first(offset, end, self._is_allocated)
        self.step()
        return answer

    def _is_data(self, start: int, end: int) -> bool:
        return not _core.buffer_is_zero(memoryview(self.image)[start:end])

    def _is_allocated(self, start: int, end: int) -> bool:
        assert self.allocated is not None
        return bool(self.allocated[start // CLUSTER])

    def _first(self, offset: int, end: int, wanted: Callable[[int, int], bool]) -> tuple[int, int] | None:
        start = offset
        while start < end:
            stop = min((start // CLUSTER + 1) * CLUSTER, end)
            if wanted(start, stop):
                first = start
                while stop < end and stop - first < self.longest_answer and wanted(stop, min(stop + CLUSTER, end)):
                    stop = min(stop + CLUSTER, end)
                return first, stop
            start = stop
        return None

    def create_dirty_bitmap(self, granularity: int) -> disk.DirtyBitmap:
        self.trackers.append(disk.DirtyBitmap(self.size, granularity))
        return self.trackers[-1]

    def release_dirty_bitmap(self, bitmap: disk.DirtyBitmap) -> None:
        self.trackers = [tracker for tracker in self.trackers if tracker is not bitmap]

    def hold_writers(self) -> None:
        self.held = True

    def release_writers(self, *, refuse: bool = False) -> None:
        self.held = refuse

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        raise NotImplementedError

    def write_zeroes(self, offset: int, nbytes: int) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Wire:
    """An OutputQEMUFile that applies what is put to images: last one wins, slack past the end is ignored."""

    def __init__(self, images: dict[bytes, bytearray]) -> None:
        self.images = images
        self.records: list[tuple[bytes, int, bool]] = []  # name, sector, is zero
        self.runs: list[int] = []
        self.packs: list[tuple[bytes, list[tuple[int, int]]]] = []
        self.words: list[int] = []
        self.step: Callable[[], None] = lambda: None

    def put_block(self, sector: int, flags: int, name: bytes, blk: _core.BlockBuffer) -> None:
        assert flags == _core.FLAG_DEVICE_BLOCK
        self.step()
        self._apply(sector, name, blk.payload)

    def put_pack(self, flags: int, name: bytes, extents: list[tuple[int, int]], blk: _core.BlockBuffer) -> None:
        self.step()
        image, done = self.images[name], 0
        for offset, nbytes in extents:
            inside = min(nbytes, len(image) - offset)
            image[offset : offset + inside] = blk.payload[done : done + inside]
            done += nbytes
        self.packs.append((name, extents))

    def put_zero_records(self, sector: int, count: int, name: bytes) -> None:
        assert count > 0
        self.step()
        self.runs.append(count)
        for number in range(count):
            self._apply(sector + number * _core.SECTORS_PER_BLOCK, name, None)

    def _apply(self, sector: int, name: bytes, payload: memoryview | None) -> None:
        image, start = self.images[name], sector * 512
        assert start < len(image), "a block outside its disk"
        nbytes = min(MIB, len(image) - start)
        image[start : start + nbytes] = bytes(nbytes) if payload is None else payload[:nbytes]
        self.records.append((name, sector, payload is None))

    def put_be64(self, value: int) -> None:
        self.step()
        self.words.append(value)

    def progress(self) -> list[int]:
        """Return the percentages."""
        return [word >> 9 for word in self.words if word & _core.FLAG_PROGRESS]

    def flush(self) -> None:
        pass

    takes_pages = keeps_pages = is_answered = is_local = is_sealed = False

    def rate_limit_exceeded(self) -> bool:
        return False


class ShuffledReads(reads.BlockReads):
    """Reads that happen at any moment between submit and collect, and complete in any order."""

    def __init__(self, rng: random.Random, *, max_parallel: int, max_buffers: int) -> None:
        super().__init__(max_buffers, payload="own")
        self._rng = rng
        self._max_parallel = max_parallel
        self._waiting: list[device.BlkMigBlock] = []
        self._done: list[device.BlkMigBlock] = []
        self.most = 0

    def has_room(self) -> bool:
        return len(self._waiting) + len(self._done) < self._max_parallel and super().has_room()

    def submit(self, blk: device.BlkMigBlock) -> None:
        assert blk.bmds is not None
        blocks = blk.block, blk.block + blk.nblocks
        assert not blk.bmds.aio_bitmap.count(*blocks), "two reads of one block in flight"
        blk.bmds.aio_bitmap.set_range(blk.block, blk.nblocks)
        self._waiting.append(blk)
        self.most = max(self.most, len(self._waiting) + len(self._done))
        self._read_some()

    def collect(self, *, wait: bool) -> device.BlkMigBlock | None:
        self._read_some()
        assert self._waiting or self._done or not wait, "a wait that would never end"
        if wait and not self._done:
            self._read(self._waiting.pop(self._rng.randrange(len(self._waiting))))
        if not self._done or (not wait and self._rng.random() < 0.5):
            return None
        blk = self._done.pop(self._rng.randrange(len(self._done)))
        assert blk.bmds is not None
        blk.bmds.aio_bitmap.clear_range(blk.block, blk.nblocks)
        return blk

    def _read_some(self) -> None:
        while self._waiting and self._rng.random() < 0.4:
            self._read(self._waiting.pop(self._rng.randrange(len(self._waiting))))

    def _read(self, blk: device.BlkMigBlock) -> None:
        reads.read(blk)
        self._done.append(blk)
