# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading blocks: at once on the migration thread, or many in flight on threads of their own.

Which is faster is a matter of the disk. What stands in the page cache is read fastest by the thread that sends it,
through one buffer that stays in the cache of its core; a disk with latency wants many requests in flight.

Both keep one promise: **a block has at most one read in flight**. Two reads of one block could complete in the wrong
order, and the older contents would be sent last. The read of a pack counts for every block from its first to its last.

Who owns what: everything is called by the migration thread. A block belongs to a reading thread from `requests.put` to
`completions.put`; the two queues are the only things shared. Nothing cuts a wait for a read short: whoever gives up has
to wait for every read in flight anyway, for they read into buffers and from disks that are about to go.
"""

from __future__ import annotations

import abc
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Literal

from .. import _core, params, passage, threads
from ..disk.extents import MAX_EXTENTS
from . import device

Payload = Literal["own", "mapped", "lent", "given"]
"""Kinds of buffers that are sent; see `passage`."""


class BlockReads(abc.ABC):
    """A pool of at most `max_buffers` blocks, whose buffers are of the kind `payload`, and the reads into them."""

    pack_extents = MAX_EXTENTS
    """A pack that has so many extents is large enough."""

    decide: Callable[[device.BlkMigBlock], None] | None = None
    """Says what is sent of a block that is compared, when it was read; None where nothing is."""

    hurries = False
    """The writers are held, or are about to be: what can be left out is left out."""

    def __init__(self, max_buffers: int, *, payload: Payload) -> None:
        self._payload = payload
        self._free: list[device.BlkMigBlock] = []
        self._unallocated = max_buffers

    def has_room(self) -> bool:
        """Return whether another read may be put in flight: not all blocks are in flight or wait to be sent."""
        return bool(self._free or self._unallocated)

    def get(self) -> device.BlkMigBlock:
        """Return a free block; the caller knows that there is room."""
        if self._free:
            return self._free.pop()
        self._unallocated -= 1
        return device.BlkMigBlock(_core.BlockBuffer(self._payload))

    def put(self, blk: device.BlkMigBlock) -> None:
        """Take `blk` back into the pool: it was sent, or nobody will send it."""
        blk.bmds = None
        self._free.append(blk)

    @abc.abstractmethod
    def submit(self, blk: device.BlkMigBlock) -> None:
        """Start the read that `blk` describes."""

    @abc.abstractmethod
    def collect(self, *, wait: bool) -> device.BlkMigBlock | None:
        """Return a block whose read is completed, None if there is none.

        With `wait` it blocks until a read completes; the caller must know that one is in flight.
        """

    def close(self) -> None:
        """Wait for the reads in flight and free the buffers. Twice does no harm."""
        self._free.clear()
        self._unallocated = 0


class InlineReads(BlockReads):
    """Reads that are over when `submit` returns: one buffer, hot in the cache."""

    def __init__(self, *, payload: Payload = "mapped") -> None:
        super().__init__(1, payload=payload)
        self._done: device.BlkMigBlock | None = None

    def submit(self, blk: device.BlkMigBlock) -> None:
        """Read `blk` now; an error is kept for `collect`, as one of a read in flight would be."""
        read(blk)
        self._done = blk

    def collect(self, *, wait: bool) -> device.BlkMigBlock | None:
        """Return the block that was read, if it was not yet collected."""
        blk, self._done = self._done, None
        return blk


class ParallelReads(BlockReads):
    """Up to `max_parallel` reads in flight, each on a thread that is started when it is first needed.

    One thread reads the extents of a pack one after the other, so a pack is to be small enough for all threads to have
    one: of a disk with 1 ms of latency, 512 pages in as many blocks take 50 ms with 16 extents, 330 with 256.
    """

    pack_extents = 16

    def __init__(self, *, max_parallel: int, max_buffers: int, payload: Payload = "mapped") -> None:
        super().__init__(max_buffers, payload=payload)
        self._max_parallel = max_parallel
        self._in_flight = 0
        self._threads: list[threading.Thread] = []
        self._requests: queue.SimpleQueue[device.BlkMigBlock | None] = queue.SimpleQueue()
        self._completions: queue.SimpleQueue[device.BlkMigBlock] = queue.SimpleQueue()

    def has_room(self) -> bool:
        """Return whether another read may be put in flight."""
        return self._in_flight < self._max_parallel and super().has_room()

    def submit(self, blk: device.BlkMigBlock) -> None:
        """Put the read of `blk` in flight."""
        assert blk.bmds is not None
        blk.bmds.aio_bitmap.set_range(blk.block, blk.nblocks)
        self._in_flight += 1
        if len(self._threads) < min(self._in_flight, self._max_parallel):
            thread = threads.Thread(target=self._run, name="blkmig-read", daemon=True)
            self._threads.append(thread)  # first: an interrupted start may have started it
            thread.start()
        self._requests.put(blk)

    def collect(self, *, wait: bool) -> device.BlkMigBlock | None:
        """Return a block whose read is completed; from here on another read of it may be put in flight."""
        try:
            blk = self._completions.get(block=wait)
        except queue.Empty:
            return None
        assert blk.bmds is not None
        blk.bmds.aio_bitmap.clear_range(blk.block, blk.nblocks)
        self._in_flight -= 1
        return blk

    def close(self) -> None:
        """Wait until every read in flight is over, then end the threads."""
        end_threads(self._threads, self._requests)
        super().close()

    def _run(self) -> None:
        """Read until told to end."""
        while (blk := self._requests.get()) is not None:
            read(blk)
            self._completions.put(blk)


def chosen(departure: passage.Departure, parameters: params.MigrationParameters) -> BlockReads:
    """Return the reading strategy that was decided."""
    if departure.reading == "inline":
        return InlineReads(payload=departure.payload)
    return ParallelReads(
        max_parallel=parameters.max_parallel_reads, max_buffers=parameters.max_buffers, payload=departure.payload
    )


def read(blk: device.BlkMigBlock) -> None:
    """Read what `blk` describes into its buffer, and keep an error for the thread that collects it."""
    assert blk.bmds is not None
    blk.error = None
    try:
        if blk.pack is not None:
            blk.bmds.backend.read_extents(blk.buf, blk.pack.extents)
        elif blk.bmds.proof is None or blk.bulk_sectors:
            blk.bmds.backend.read_block(blk.buf, blk.offset, blk.nbytes)
        else:  # into memory of our own: it is hashed as it is sent, so nobody may write it in between
            blk.bmds.backend.read_extents(blk.buf, [(blk.offset, blk.nbytes)])
            blk.buf.filled(blk.nbytes)
    except BaseException as error:
        blk.error = error


def end_threads(threads: list[threading.Thread], requests: queue.SimpleQueue[device.BlkMigBlock | None]) -> None:
    """Have `threads` end, each by a None among the `requests` that they take, and wait for them."""
    for _ in threads:
        requests.put(None)
    for thread in threads:
        with contextlib.suppress(RuntimeError):  # it could not be started
            thread.join()
    threads.clear()
