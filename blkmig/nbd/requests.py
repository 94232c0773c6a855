# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that one NBD handle has in flight, and the threads that sleep until they are answered.

Everything here is under the handle's lock.
"""

from __future__ import annotations

import ctypes
import threading
import time

from . import _libnbd


class Request:
    """One command in flight."""

    __slots__ = ("done", "error", "keep", "signal")

    def __init__(self, keep: object) -> None:
        self.done = False
        self.error: OSError | None = None
        self.keep = keep
        self.signal: threading.Lock | None = None  # held while a thread sleeps on it

    def will_wait(self) -> threading.Lock:
        """Return a lock that the calling thread acquires in order to sleep, once it has let the handle's lock go."""
        self.signal = threading.Lock()
        self.signal.acquire()
        return self.signal

    def wake(self) -> bool:
        """Wake the thread that waits for this request, or is about to wait; return False if there is none."""
        if self.signal is None:
            return False
        self.signal.release()
        self.signal = None
        return True


class Requests:
    """The requests that are in flight, by libnbd's cookie."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._by_cookie: dict[int, Request] = {}
        self._answered_at = 0.0  # when a request was answered last, or the first one in flight was started

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._by_cookie)

    def add(self, cookie: int, request: Request) -> None:
        """Add a request that was started."""
        if not self._by_cookie:
            self._answered_at = time.monotonic()
        self._by_cookie[cookie] = request

    def collect_answered(self, handle: int | None) -> None:
        """Remove the requests that the server has answered, and wake the threads that wait for them."""
        now = time.monotonic()
        while (cookie := self._library.nbd_aio_peek_command_completed(handle)) > 0:
            request = self._by_cookie.pop(cookie)
            self._answered_at = now
            if self._library.nbd_aio_command_completed(handle, cookie) == -1:
                request.error = _libnbd.last_error(self._library)
            request.done = True
            request.wake()

    def fail(self, error: OSError) -> None:
        """Make all requests fail; libnbd does not use their buffers any more."""
        self.abandon(error)
        self._by_cookie.clear()

    def abandon(self, error: OSError) -> None:
        """Make all requests fail, and keep their buffers, because libnbd may still use them."""
        for request in self._by_cookie.values():
            if not request.done:
                request.done, request.error = True, copy(error)
                request.wake()

    def wake_one(self) -> None:
        """Wake one of the threads that sleep, if there is any."""
        any(request.wake() for request in self._by_cookie.values())

    def are_overdue(self, seconds: float) -> bool:
        """Return whether requests are in flight, and none was answered for so many seconds."""
        return bool(self._by_cookie) and time.monotonic() - self._answered_at > seconds


def copy(error: OSError) -> OSError:
    """Return a copy of `error`. Each thread raises its own, because raising changes an exception."""
    return OSError(error.errno, error.strerror)
