# SPDX-License-Identifier: GPL-2.0-or-later
"""Storing by a thread of its own: a target is written behind the back of whoever receives.

The thread stores whole blocks while the next ones come. They overtake nothing, for whatever else is done to the file
waits until they are stored. So the file is always what one write after the other would have made it.
"""

from __future__ import annotations

import sys
import threading

from .. import _core, _storing, threads

DEPTH = 4
"""Blocks that are being stored or wait for it, at most. The receiver runs ahead of the disk by three."""

TCP_DEPTH = 2
"""The same for blocks that came over TCP as pages: one that is being stored and one that waits.

With more, the receiver empties its socket more often than not. A TCP sender that finds room there sends in small
pieces, which takes it more CPU time: 2 GiB take 0.24 s with two, 0.28 with three to eight.
"""

PLACES = 4
"""Places of a block that came as pages at which the file is looked at for zeros: each look is a system call, 0.7 us."""


class StoringThread:
    """The thread that stores in a file, and what waits for it. Any thread may put, drain and close.

    Zero clusters of `cluster` bytes become holes, unless that is 0. Raises RuntimeError if no thread can be started. A
    block that cannot be stored is a `_storing.LateError` at the next call, and at all later ones: an :class:`OSError`
    whose `offset` says which block that was.
    """

    def __init__(self, cluster: int) -> None:
        self._queue = _storing.StoringQueue(cluster, DEPTH, TCP_DEPTH, PLACES)
        # Held by whoever puts or drains, also while that waits: the queue is for one at a time. It guards `_start` and
        # `_stop`, too. The storing thread does not need it.
        self._lock = threading.Lock()
        self._start = self._stop = 0  # what was put since the last drain lies between
        self._thread = threads.Thread(target=self._queue.run, name="blkmig-store", daemon=True)
        self._thread.start()

    def put(self, blk: _core.BlockBuffer, fd: int, offset: int, *, allocate: bool) -> None:
        """Have the payload of `blk`, which it loses, stored soon. Blocks while as many wait as may."""
        with self._lock:
            if self._start == self._stop:
                self._start = offset
            self._start = min(self._start, offset)
            self._stop = max(self._stop, offset + _core.BLOCK_SIZE)
            self._queue.put(blk, fd, offset, allocate)

    def drain(self, start: int = 0, stop: int = sys.maxsize) -> None:
        """Return when everything is stored that may lie in [start, stop)."""
        with self._lock:
            if start < self._stop and stop > self._start:
                self._queue.drain()
                self._start = self._stop = 0
            else:
                self._queue.check()

    def close(self) -> None:
        """Store what waits and end the thread, after an error too. Safe twice.

        Raises LateError if a block could not be stored, unless a call before has told so.
        """
        if self._queue.is_foreign:
            return  # a fork's child: the thread, and what waits for it, are the parent's
        try:
            with self._lock:
                if not self._queue.told:
                    self._queue.drain()
        finally:
            self._queue.close()
            self._thread.join()
