# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an NBD export holds data, asked in windows and remembered a window at a time.

A window is what one reply of the server describes: up to 4 GiB, however the disk is laid out, and bounded memory.
It is true for the moment in which the server answered. Whoever learns of a write says :meth:`Extents.forget` *before*
the write is marked dirty: then a migration that clears the mark and asks afterwards gets a younger answer.
"""

from __future__ import annotations

import array
import bisect
import threading

from . import connection as nbd_connection


class Extents:
    """The verbs `next_data` and `next_allocated` of a disk, for an NBD export. Any thread may call them."""

    def __init__(self, connection: nbd_connection.NbdConnection) -> None:
        self._connection = connection
        # Under `_lock`; `_epoch` counts what was forgotten, so that an answer from before is not remembered after.
        self._lock = threading.Lock()
        self._epoch = 0
        self._windows: dict[str, Window] = {}

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Return the first extent (start, end) from `offset` on that does not read as zeros, None if there is none.

        It may end in the middle of data, at the end of a window. Without base:allocation everything is data.
        """
        return self._next(nbd_connection.BASE_ALLOCATION, offset, self._connection.size)

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Return the first extent (start, end) in the range that the top layer holds, None if there is none.

        Without qemu:allocation-depth the top layer holds everything.
        """
        end = min(offset + nbytes, self._connection.size)
        extent = self._next(nbd_connection.ALLOCATION_DEPTH, offset, end)
        return None if extent is None else (extent[0], min(extent[1], end))

    def forget(self) -> None:
        """Ask the server again next time."""
        with self._lock:
            self._epoch += 1
            self._windows.clear()

    def _next(self, context: str, offset: int, end: int) -> tuple[int, int] | None:
        if context not in self._connection.contexts:
            return (offset, end) if offset < end else None
        while offset < end:
            window = self._window_at(context, offset)
            extent = window.next_extent(offset)
            if extent is not None:
                return extent if extent[0] < end else None
            offset = window.end
        return None

    def _window_at(self, context: str, offset: int) -> Window:
        self._connection.check_home()  # before the lock
        with self._lock:
            window = self._windows.get(context)
            epoch = self._epoch
        if window is not None and window.start <= offset < window.end:
            return window
        window = Window(self._connection, context, offset)
        with self._lock:
            if epoch == self._epoch:
                self._windows[context] = window
        return window


class Window:
    """The extents of interest in [start, end): ascending, apart from each other."""

    __slots__ = ("_ends", "_starts", "end", "start")

    def __init__(self, connection: nbd_connection.NbdConnection, context: str, start: int) -> None:
        self.start = self.end = start
        self._starts, self._ends = array.array("Q"), array.array("Q")
        for length, flags in connection.one_block_status(context, start, connection.size - start):
            if is_wanted(context, flags):
                self._add(self.end, self.end + length)
            self.end += length

    def _add(self, start: int, end: int) -> None:
        if self._ends and self._ends[-1] == start:
            self._ends[-1] = end
        else:
            self._starts.append(start)
            self._ends.append(end)

    def next_extent(self, offset: int) -> tuple[int, int] | None:
        """Return the first extent that ends after `offset`, cut to begin there at the earliest."""
        index = bisect.bisect_right(self._ends, offset)
        return (max(offset, self._starts[index]), self._ends[index]) if index < len(self._ends) else None


def is_wanted(context: str, flags: int) -> bool:
    """Tell whether the flags of an extent mean data, or for allocation depths, allocated in the top layer."""
    if context == nbd_connection.ALLOCATION_DEPTH:
        return flags == 1
    return not flags & nbd_connection.STATE_ZERO
