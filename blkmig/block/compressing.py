# SPDX-License-Identifier: GPL-2.0-or-later
"""Payloads are compressed between the read and the stream, by threads of their own, and leave in their order::

    submit ──► read ──► order:  | 7 | 6 | 5 | 4 |  ──► collect ──► stream
                                  └───┴─┬─┴───┘
                                     workers       each makes a frame of one payload, or finds that it does not shrink

What was read first is sent first, whatever the workers do: an older read of a block never comes behind a younger one.

Who owns what: everything is called by the migration thread. A block that was given to the workers belongs to one of
them until it is in `_done`; the two queues are the only things shared.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import threading
from typing import Final

from .. import params, passage, zstd
from . import compressed, device, reads

MAX_WORKERS: Final = 4
"""So many are enough for 10 Gbit/s of text; each may take all of a processor."""

LEVEL: Final = 1

SAMPLES: Final = 4
SAMPLE_BYTES: Final = 4096
"""A large payload is tried first in so many places, of so many bytes each: what does not shrink there goes as it is."""

SAMPLED_FROM: Final = 16 * SAMPLES * SAMPLE_BYTES


class CompressedReads(reads.BlockReads):
    """The reads of `inner`, whose payloads are compressed before they are collected, at most `max_buffers` of them."""

    def __init__(self, inner: reads.BlockReads, max_buffers: int, *, workers: int, has_checksum: bool) -> None:
        super().__init__(max_buffers, payload="own")
        self.pack_extents = inner.pack_extents
        self._inner = inner
        self._reading = 0
        self._order: collections.deque[device.BlkMigBlock] = collections.deque()
        self._pending: set[device.BlkMigBlock] = set()
        self._max_workers = workers
        self._has_checksum = has_checksum
        self._threads: list[threading.Thread] = []
        self._requests: queue.SimpleQueue[device.BlkMigBlock | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[device.BlkMigBlock] = queue.SimpleQueue()

    def has_room(self) -> bool:
        """Return whether another read may be put in flight."""
        return super().has_room() and self._inner.has_room()

    def submit(self, blk: device.BlkMigBlock) -> None:
        """Start the read that `blk` describes."""
        blk.frame = None
        self._inner.submit(blk)
        self._reading += 1
        self._take_reads(wait=False)

    def collect(self, *, wait: bool) -> device.BlkMigBlock | None:
        """Return the block that was read first, if it is ready to be sent."""
        self._take_reads(wait=wait and not self._order)
        if not self._order:
            return None
        head = self._order[0]
        while head in self._pending:
            try:
                self._pending.remove(self._done.get(block=wait))
            except queue.Empty:
                return None
        return self._order.popleft()

    def close(self) -> None:
        """Wait until nobody reads or compresses any more, then end the threads."""
        self._inner.close()
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):  # it could not be started
                thread.join()
        self._threads.clear()
        self._order.clear()
        self._pending.clear()
        super().close()

    def _take_reads(self, *, wait: bool) -> None:
        """Take what was read; with `wait`, wait for the first."""
        while self._reading and (blk := self._inner.collect(wait=wait)) is not None:
            wait = False
            self._reading -= 1
            self._order.append(blk)
            if self._is_wanted(blk):
                self._compress(blk)

    def _is_wanted(self, blk: device.BlkMigBlock) -> bool:
        """Return whether the payload is to be compressed: zeros have none, and what is compared may not be sent."""
        is_zero = blk.pack is None and blk.buf.is_zero
        return blk.error is None and not is_zero and blk.compared is None

    def _compress(self, blk: device.BlkMigBlock) -> None:
        self._pending.add(blk)
        if len(self._threads) < min(len(self._pending), self._max_workers):
            thread = threading.Thread(target=self._run, name="blkmig-zstd", daemon=True)
            self._threads.append(thread)  # first: an interrupted start may have started it
            thread.start()
        self._requests.put(blk)

    def _run(self) -> None:
        """Compress until told to end."""
        compressor: zstd.Compressor | None = None
        while (blk := self._requests.get()) is not None:
            try:
                compressor = compressor or zstd.Compressor(LEVEL, has_checksum=self._has_checksum)
                with blk.buf.data as data, data[: blk.counted_bytes] as payload:
                    blk.frame = frame_of(payload, compressor)
            except BaseException as error:
                blk.error = error
            self._done.put(blk)


def frame_of(payload: memoryview, compressor: zstd.Compressor) -> bytes | None:
    """Return a frame of `payload`, or None if it does not shrink. It drops the GIL for all but small pieces."""
    nbytes = payload.nbytes
    if nbytes >= SAMPLED_FROM:
        step = (nbytes - SAMPLE_BYTES) // (SAMPLES - 1)
        sample = b"".join([payload[start : start + SAMPLE_BYTES] for start in range(0, nbytes, step)][:SAMPLES])
        if len(compressor.frame(sample)) > compressed.most_bytes(len(sample)):
            return None
    frame = compressor.frame(payload)
    return frame if len(frame) <= compressed.most_bytes(nbytes) else None


def chosen(departure: passage.Departure, parameters: params.MigrationParameters) -> reads.BlockReads:
    """Return the reading strategy that was decided, with compressing behind it where that was decided, too."""
    found = reads.chosen(departure, parameters)
    if departure.compressed == "no":
        return found
    has_checksum = departure.compressed == "checked"
    workers = min(max(1, len(os.sched_getaffinity(0)) - 1), MAX_WORKERS)
    return CompressedReads(found, parameters.max_buffers, workers=workers, has_checksum=has_checksum)
