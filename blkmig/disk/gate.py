# SPDX-License-Identifier: GPL-2.0-or-later
"""The gate that the writers of a disk go through, where they are threads of this process, and the trackers.

Every write goes through the gate, and is marked before it leaves it::

    writer            enter ─ write ─ mark every tracker ─ leave
    hold_writers      close the gate ─ wait until nobody is inside        so: what is finished is marked

Entering and leaving are one call each, of `_gate.Passage`: a signal handler that raises (Ctrl-C) may end a write
anywhere, but not between the write and its mark. A child of a fork has a gate of its own, and trackers that nobody
looks at: there, nobody may write.

The trackers are an immutable tuple that is replaced as a whole. A writer looks it up *after* its write, without a lock.
That is enough: a writer that missed a new tracker had finished its write before the tracker was there, so every read
that relies on the tracker, being later, sees the data. A writer that still sees a released one marks it in vain.

A write that fails marks, too: a part of it may have been written.
"""

from __future__ import annotations

import abc
import contextlib
import os
import threading
import time
from typing import SupportsIndex

from .. import _gate, errors, units
from . import backend, dirty, names

CLOSED = "device without a medium (closed)"
_THROTTLE_PERIOD = 0.05  # seconds: short against the rounds of a migration, long against a write
_HOLD_PERIOD = 0.05  # seconds after which a hold that waits looks whether it was cancelled: `cancel` takes no lock


class GatedBackend(backend.BlockBackend):
    """A disk with a writer gate: who may write it now, who tracks it, and how it is closed."""

    def __init__(self, name: str, size: int, *, read_only: bool = False) -> None:
        names.check_name(name)
        units.check_flags(read_only=read_only)
        self.name = name
        self.size = size
        self.is_read_only = read_only
        # Counts who is inside, under the GIL. While the disk is held, refused or closed, it calls `_await_entry` first.
        self._passages = _gate.Gate()
        self._pid = os.getpid()
        # Under `_lock`. `_gate` is notified when one of these changes, and when the last writer leaves.
        self._lock = threading.Lock()
        self._gate = threading.Condition(self._lock)
        self._held = False
        self._refused = False
        self._closed = False
        self._fraction = 1.0
        # Any thread and any signal handler may set it, so it takes no lock; a new tracker clears it.
        self._cancelled = False
        # Replaced under `_lock`, read without it.
        self._trackers: tuple[dirty.DirtyBitmap, ...] = ()

    # -- the guest: any thread -----------------------------------------------------------------------------------------

    def mark_dirty(self, offset: SupportsIndex, nbytes: SupportsIndex) -> None:
        """Say that [offset, offset + nbytes) was written by other means; call it *after* that write.

        It goes through the gate: while writers are held it blocks, and when the disk has moved it raises. A write
        counts as done when this returns, and one that meets a held gate may be missing from the copy, as a write in
        flight is after a crash. For a write that is wholly on one side of the switchover use :meth:`writing`.
        """
        offset, nbytes = self.check_range("cannot mark", offset, nbytes)
        with self.writing(offset, nbytes):
            pass

    def writing(self, offset: SupportsIndex, nbytes: SupportsIndex) -> contextlib.AbstractContextManager[None]:
        """Be inside the gate for a ``with`` whose body writes [offset, offset + nbytes) by other means.

        Entering blocks while writers are held. Leaving marks the range, also after an exception. The body must not
        write through this object or hold writers.
        """
        offset, nbytes = self.check_range("cannot write", offset, nbytes)
        if self.is_read_only:
            raise errors.DeviceError("cannot be written", device=self.name, cause="it is read-only")
        return _gate.Passage(self._passages, self, offset, nbytes, True)

    # -- for the gate --------------------------------------------------------------------------------------------------

    def _await_entry(self) -> None:
        """Return when a writer may enter, unless that has changed meanwhile; raise if it never may."""
        self.check_home("cannot be written")
        with self._lock:
            while self._held or (self._fraction < 1 and not self._closed and self._pause() > 0):
                self._gate.wait(None if self._held else self._pause())
            self.check_open()
            if self._refused:
                raise errors.DeviceError("cannot be written", device=self.name, cause="the disk has moved")

    def _mark(self, offset: int, nbytes: int) -> None:
        """Mark what was written in all trackers. It is called again after an error, so twice must do no harm."""
        for tracker in self._trackers:
            tracker.mark(offset, nbytes)

    def _wake(self) -> None:
        """Tell those who wait that nobody is inside."""
        with self._lock:
            self._gate.notify_all()

    def _changed(self) -> None:
        """Tell the gate and those who wait what has changed. Under `_lock`."""
        self._passages.shut = self._held or self._refused or self._closed
        self._passages.throttled = self._fraction < 1
        self._gate.notify_all()

    @property
    def is_foreign(self) -> bool:
        """Return whether this is a child of the process that opened the disk."""
        return self._passages.is_foreign

    def check_home(self, doing: str) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` in a child of the process that opened the disk."""
        if self._passages.is_foreign:
            cause = (
                f"process {self._pid} opened it, and in its child {os.getpid()} nobody would know of what is written: "
                "write it there, or open it after the fork"
            )
            raise errors.DeviceError(doing, device=self.name, cause=cause)

    # -- the migration -------------------------------------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        """Return whether the gate is closed: the writers are held, or `hold_writers` waits for the last of them."""
        return self._held

    @property
    def trackers(self) -> tuple[dirty.DirtyBitmap, ...]:
        """Return the bitmaps in which writes are marked now, the oldest first."""
        return self._trackers

    def create_dirty_bitmap(self, granularity: int) -> dirty.DirtyBitmap:
        """Start tracking; writers may be at work."""
        self.check_home("cannot be migrated")
        bitmap = dirty.DirtyBitmap(self.size, granularity)
        self._cancelled = False
        with self._lock:
            self.check_open()
            self._trackers = (*self._trackers, bitmap)
        return bitmap

    def release_dirty_bitmap(self, bitmap: dirty.DirtyBitmap) -> None:
        """Stop tracking in `bitmap`, also after the disk was closed; writers may be at work."""
        if self._passages.is_foreign:
            return
        with self._lock:
            self._trackers = tuple(tracker for tracker in self._trackers if tracker is not bitmap)

    def hold_writers(self) -> None:
        """Close the gate and wait until nobody is inside. Held writers wait, they do not fail.

        Holding twice is holding once. If somebody releases the writers meanwhile, or calls `cancel`, that is a
        :class:`Cancelled`: then, and after any other error, the gate is open.
        """
        self.check_home("cannot be held")
        with self._lock:
            self._held = True
            try:
                self._changed()  # first, then look who is inside: whoever enters later has seen that the gate is shut
                while not self._gate.wait_for(lambda: not self._passages.writers or not self._held, _HOLD_PERIOD):
                    if self._cancelled:
                        raise errors.Cancelled(f"disk {self.name!r}: cancelled while its writers were being held")
                if not self._held:
                    raise errors.Cancelled(f"disk {self.name!r}: the writers were released while they were being held")
            except BaseException:
                self._open_gate()
                raise

    def release_writers(self, *, refuse: bool = False) -> None:
        """Open the gate, or with `refuse` turn the writers away for good.

        After a move that ended with :class:`~blkmig.errors.InDoubt` the writers are still held, and this is what lets
        them go on, once it is known that the target does not use the disk.
        """
        units.check_flags(refuse=refuse)
        if self._passages.is_foreign:
            return
        with self._lock:
            if self._held:
                self._refused = self._refused or refuse
                self._open_gate()

    def cancel(self) -> None:
        """End a `hold_writers` that waits; no other call waits for long."""
        self._cancelled = True

    def leave_in_doubt(self) -> None:
        """Leave the writers held: they wait until somebody knows, and calls `release_writers`, or closes the disk."""

    def written_bytes(self) -> int:
        """Return how many bytes went through the gate since the disk was opened."""
        return self._passages.written

    def throttle_writers(self, fraction: float) -> bool:
        """Open the gate for only this fraction (above 0) of every 50 ms: busy writers get that much of their speed."""
        fraction = units.share("fraction", fraction)
        self.check_home("cannot be throttled")
        with self._lock:
            self._fraction = fraction
            self._changed()
        return True

    def _pause(self) -> float:
        """Return the seconds until a throttled writer may enter; 0 if it may now."""
        now = time.monotonic() % _THROTTLE_PERIOD
        return 0 if now < self._fraction * _THROTTLE_PERIOD else _THROTTLE_PERIOD - now

    def _open_gate(self) -> None:
        self._held = False
        self._changed()

    # -- its end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Turn held and new writers away, wait for those inside and for who is in `pread`, and release the disk.

        The migration's own reads in flight are its to wait for.
        """
        gate = self._passages
        if gate.is_foreign:  # those inside are threads of the parent, and one of them may hold the lock
            self._closed = True
        else:
            with self._lock:
                self._closed = True
                self._fraction = 1.0
                self._open_gate()
                while gate.writers or gate.readers:
                    self._gate.wait(_HOLD_PERIOD)
        self._close()

    @abc.abstractmethod
    def _close(self) -> None:
        """Release what the disk holds, with no writer inside; may be called again."""

    # -- errors --------------------------------------------------------------------------------------------------------

    def check_range(self, doing: str, offset: SupportsIndex, nbytes: SupportsIndex) -> tuple[int, int]:
        """Return both as plain numbers: of other kinds, as numpy's, sums may overflow. A float is a TypeError.

        Raises :class:`~blkmig.errors.DeviceError` unless [offset, offset + nbytes) lies inside the exact size.
        """
        if type(offset) is not int or type(nbytes) is not int:  # a block's always are
            offset, nbytes = units.index(offset), units.index(nbytes)
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            cause = f"that is outside the disk of {self.size} bytes"
            raise errors.DeviceError(doing, device=self.name, cause=cause, offset=offset, nbytes=nbytes)
        return offset, nbytes

    def check_open(self) -> None:
        if self._closed:
            raise errors.DeviceError("cannot be used", device=self.name, cause=CLOSED)
