# SPDX-License-Identifier: GPL-2.0-or-later
"""Payloads are compressed between the read and the stream, by threads of their own, and leave in their order::

    submit ──► read ──► order:  | 7 | 6 | 5 | 4 |  ──► collect ──► stream
                                  └───┴─┬─┴───┘
                                     workers       each makes a frame of one payload, or finds that it does not shrink

What was read first is sent first, whatever the workers do: an older read of a block never comes behind a younger one.
Of a block that the target may hold, what differs is found first (`decide` of `compare`), and that alone is compressed.
One block at a time is handed out, so that the next reads begin while the link takes it. `effort` says which payloads
are compressed, and how well.

Who owns what: everything is called by the migration thread. A block that was given to the workers belongs to one of
them until it is in `_done`; the two queues are the only things shared.
"""

from __future__ import annotations

import collections
import os
import queue
import threading
import time
from typing import Final

from .. import params, passage, threads, zstd
from . import compressed, device, effort, reads

MAX_WORKERS: Final = 4
"""So many are enough for 10 Gbit/s of text; each may take all of a processor."""

SAMPLES: Final = 4
SAMPLE_BYTES: Final = 4096
"""A large payload is tried first in so many places, of so many bytes each: what does not shrink there goes as it is."""

SAMPLED_FROM: Final = 16 * SAMPLES * SAMPLE_BYTES


class CompressedReads(reads.BlockReads):
    """The reads of `inner`, whose payloads are compressed before they are collected, at most `max_buffers` of them."""

    def __init__(
        self, inner: reads.BlockReads, max_buffers: int, *, workers: int, tuned: effort.Effort, has_checksum: bool
    ) -> None:
        super().__init__(max_buffers, payload="own")
        self.pack_extents = inner.pack_extents
        self._inner = inner
        self._effort = tuned
        self._max_workers = workers
        self._has_checksum = has_checksum
        self._reading = self._collected = 0
        self._order: collections.deque[tuple[device.BlkMigBlock, int]] = collections.deque()
        self._ahead = 0  # what they will have on the wire, as far as one can tell: the sum of these numbers
        self._pending: dict[device.BlkMigBlock, int] = {}
        self._queued = 0  # the same, of those that the workers have
        self._threads: list[threading.Thread] = []
        self._requests: queue.SimpleQueue[device.BlkMigBlock | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[device.BlkMigBlock, float]] = queue.SimpleQueue()

    def has_room(self) -> bool:
        """Return whether another read may be put in flight; without compressing, as many as without this stage."""
        if not self._effort.is_worth_it() and self._order:
            return False  # one buffer, hot in the cache
        return super().has_room() and self._inner.has_room()

    def submit(self, blk: device.BlkMigBlock) -> None:
        """Start the read that `blk` describes."""
        blk.frame = None
        self._inner.submit(blk)
        self._reading += 1
        self._take_reads(wait=False)

    def collect(self, *, wait: bool) -> device.BlkMigBlock | None:
        """Return the block that was read first, if it is ready to be sent; without `wait`, if none is being sent."""
        if self._collected and not wait:
            return None
        self._take_reads(wait=wait and not self._order)
        if not self._order:
            return None
        (head, expected), began = self._order[0], time.monotonic()
        while head in self._pending:
            if not self._take_done(wait=wait):
                return None
        self._order.popleft()
        self._collected += 1
        self._ahead -= expected
        nbytes = payload_bytes(head)
        self._effort.sends(nbytes, nbytes if head.frame is None else len(head.frame), time.monotonic() - began)
        return head

    def put(self, blk: device.BlkMigBlock) -> None:
        """Take `blk` back into the pool: it was sent, or nobody will send it."""
        if self._collected and blk.bmds is not None:
            self._collected -= 1
            self._effort.sent()
        super().put(blk)

    def close(self) -> None:
        """Wait until nobody reads or compresses any more, then end the threads."""
        self._inner.close()
        reads.end_threads(self._threads, self._requests)
        self._order.clear()
        self._pending.clear()
        super().close()

    def _take_reads(self, *, wait: bool) -> None:
        """Take what was read; with `wait`, wait for the first."""
        while self._reading and (blk := self._inner.collect(wait=wait)) is not None:
            wait = False
            self._reading -= 1
            while self._pending and self._take_done(wait=False):
                pass
            if blk.compared is not None and blk.error is None and self.decide is not None:
                self.decide(blk)
            expected = payload_bytes(blk)
            if self._is_wanted(blk):
                self._compress(blk)
                expected = int(expected * self._effort.ratio)
            self._order.append((blk, expected))
            self._ahead += expected

    def _take_done(self, *, wait: bool) -> bool:
        try:
            blk, seconds = self._done.get(block=wait)
        except queue.Empty:
            return False
        nbytes = self._pending.pop(blk)
        self._queued -= nbytes
        self._effort.worked(nbytes, None if blk.frame is None else len(blk.frame), seconds)
        return True

    def _is_wanted(self, blk: device.BlkMigBlock) -> bool:
        """Return whether the payload is to be compressed: zeros have none, nor has what the target holds."""
        nbytes = payload_bytes(blk)
        if blk.error is not None or not nbytes:
            return False
        return self._effort.wants(nbytes, queued=self._queued, ahead=self._ahead, hurries=self.hurries)

    def _compress(self, blk: device.BlkMigBlock) -> None:
        self._pending[blk] = payload_bytes(blk)
        self._queued += self._pending[blk]
        if len(self._threads) < min(len(self._pending), self._max_workers):
            thread = threads.Thread(target=self._run, name="blkmig-zstd", daemon=True)
            self._threads.append(thread)  # first: an interrupted start may have started it
            thread.start()
        self._requests.put(blk)

    def _run(self) -> None:
        """Compress until told to end."""
        compressors: dict[int, zstd.Compressor] = {}
        while (blk := self._requests.get()) is not None:
            began, level = time.monotonic(), self._effort.level
            try:
                if level not in compressors:
                    compressors[level] = zstd.Compressor(level, has_checksum=self._has_checksum)
                with blk.buf.data as data, data[: payload_bytes(blk)] as payload:
                    blk.frame = frame_of(payload, compressors[level])
            except BaseException as error:
                blk.error = error
            self._done.put((blk, time.monotonic() - began))


def payload_bytes(blk: device.BlkMigBlock) -> int:
    """Return how many bytes are sent of a block that was read: none of zeros, nor of what the target holds."""
    if blk.pack is not None:
        return blk.pack.nbytes
    return 0 if blk.buf.is_zero or not blk.has_payload else blk.counted_bytes


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
    workers = min(max(1, len(os.sched_getaffinity(0)) - 1), MAX_WORKERS)
    return CompressedReads(
        found,
        parameters.max_buffers,
        workers=workers,
        tuned=effort.Effort(always=parameters.compress == "zstd", workers=workers),
        has_checksum=departure.compressed == "checked",
    )
