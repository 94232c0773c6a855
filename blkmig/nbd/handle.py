# SPDX-License-Identifier: GPL-2.0-or-later
"""One NBD connection that any number of threads use at once, with their requests in flight together.

libnbd's own blocking calls keep the connection to themselves while they wait. Here a thread only *starts* its requests,
and one of the waiting threads, the leader, moves the bytes for all of them (leader and followers)::

    thread A   start ─ leads:  poll ─ notify_read ─ poll ─ notify_read ─ mine is done ─ hands the lead to B
    thread B       start ─ waits ───────────────────────────────────────────────────── leads: poll ─ ...
    thread C           start ─ waits ────────────── done

A single thread is its own leader: there is no switch between threads, and nothing runs in the background. A thread may
also start several requests and wait for them later. Invariants:

* Every use of libnbd's handle is under `_lock`, and nobody waits for the network under that lock.
* Whatever sends or receives looks whether the connection is over, before it lets go of the lock: libnbd has closed the
  socket then, and its number may be another file's at any moment.
* While a thread waits for a request, some thread leads or has been told to lead.
* A cancel reaches every thread that waits. Requests in flight have CANCEL_SECONDS to finish, so that a server that
  answers keeps its connection. No new request is started.
* A request keeps its buffer referenced until libnbd is done with it or the handle is closed. An interrupted call closes
  the handle, so that no late reply is written into memory that is used for something else.
* If requests are still in flight at the end of a cancel, the connection is abandoned: every request fails, no byte is
  moved any more, and late replies stay in the socket. The connection stays open, because a QEMU wants to close it
  first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import _gate, forks
from . import _libnbd, requests
from . import connecting as nbd_connecting

CANCEL_SECONDS = 0.5
"""Seconds that requests in flight may still take after a cancel."""

PATIENCE = 10
"""So many idle time-outs may pass without an answered request, even if bytes come: a byte a second is no answer."""


class NbdHandle:
    """A connection to one export. Every failure is an OSError with libnbd's text."""

    def __init__(
        self,
        uri: str,
        configure: Callable[[ctypes.CDLL, int], None],
        *,
        connect_timeout: float,
        request_timeout: float,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect to `uri` within `connect_timeout` seconds; `configure` sets libnbd's handle up before that.
        `is_cancelled` is asked whether to give up connecting.
        `request_timeout` is how many seconds the connection may stand still while requests are in flight, 0 for ever.
        """
        self._library = _libnbd.load()
        self._home = _gate.Gate()
        self._request_timeout = request_timeout
        self._lock = threading.RLock()  # re-entrant for `cancel` only, which a signal handler may call
        self._cancel_deadline: float | None = None
        self._is_abandoned = False
        self._requests = requests.Requests(self._library)
        self._leading = False
        self._polling = 0  # the direction that the leader waits for just now, 0 if it does not wait
        self._failure: OSError | None = None
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._handle: int | None = nbd_connecting.open_ready(
                self._library, uri, configure, timeout=connect_timeout, is_cancelled=is_cancelled
            )
        except BaseException:
            os.close(self._wake_fd)
            raise
        self._fd: int = self._library.nbd_aio_get_fd(self._handle)
        forks.leave_to_parent(self, self._fd)
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)

    def ask(self, function: str, *args: Any) -> int:
        """Call a `function` of libnbd that asks about the export and does not block; return its result."""
        self.check_home()
        with self._lock:
            return _libnbd.check(self._library, getattr(self._library, function)(self._open_handle(), *args))

    def check_home(self) -> None:
        """Raise in a forked child: its requests would be mixed with those of its parent.

        Call it before anything takes a lock, because another thread may have held the lock when the fork came.
        """
        if self._home.is_foreign:
            raise forks.not_here()

    def run(self, function: str, *args: Any, keep: object = None) -> None:
        """Run one command, ``nbd_aio_...``, and return when the server has answered it; see `start` and `wait`."""
        try:
            self.wait(self.start(function, *args, keep=keep))
        except Exception:
            raise
        except BaseException:  # KeyboardInterrupt between the two calls: nobody waits for a command that is in flight
            self.close()
            raise

    def start(self, function: str, *args: Any, keep: object = None) -> requests.Request:
        """Start one command, ``nbd_aio_...``; `keep` owns the memory that it uses. Does not block.

        Any number of threads may call this at once. Bytes move only while some thread is in :meth:`wait` or
        :meth:`push`.
        """
        request = requests.Request(keep)
        self.check_home()
        with self._lock:
            if self._cancel_deadline is not None:
                raise nbd_connecting.not_begun()
            cookie = getattr(self._library, function)(self._open_handle(), *args)
            is_over = nbd_connecting.is_over(self._library, self._handle)  # perhaps of one that counts as begun
            if is_over or cookie == -1:
                error = _libnbd.last_error(self._library, errno.ENOTCONN)
                if is_over:
                    self._fail(error)
                raise error
            self._requests.add(cookie, request)
            if self._polling and self._library.nbd_aio_get_direction(self._handle) & ~self._polling:
                os.eventfd_write(self._wake_fd, 1)  # the leader must wait for room in the socket as well
        return request

    def wait(self, request: requests.Request) -> None:
        """Return when the server has answered `request`, or raise its error. Drops the GIL while it waits.

        If the server refuses the request, the connection goes on. If the connection breaks, everything else fails, too;
        an exception in the waiting thread, such as KeyboardInterrupt, closes the connection.
        """
        self.check_home()
        try:
            self._wait(request)
        except BaseException:
            self.close()
            raise
        if request.error is not None:
            raise request.error

    def push(self) -> None:
        """Move the bytes that can be moved without waiting, for all requests that were started."""
        self.check_home()
        with self._lock:
            if self._handle is None or not self._take_lead():
                return
        try:
            self._move_bytes_once(timeout=0)
        finally:
            self._hand_over_lead()

    def cancel(self) -> None:
        """Give requests in flight a moment to finish; those that do not, and all later ones, fail with ECANCELED.

        From any thread and any signal handler.
        """
        if self._home.is_foreign:
            return
        with self._lock:  # its holders wait for nobody
            self._cancel_deadline = time.monotonic() + CANCEL_SECONDS
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def renew(self) -> bool:
        """Forget a cancel. Return False if the connection is closed, or was abandoned: then it can only be closed."""
        self.check_home()
        with self._lock:
            self._cancel_deadline = None
            return self._handle is not None and not self._is_abandoned

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled."""
        return self._cancel_deadline is not None

    def close(self) -> None:
        """Close the connection, from any thread; requests in flight fail with ECANCELED. Twice does no harm.

        It does not wait: bytes that could not be sent yet are dropped. In a forked child it does nothing.
        """
        if self._home.is_foreign:
            return
        with self._lock:
            self._fail(OSError(errno.ECANCELED, "the connection was closed"))
            self._release_wake_fd()

    # -- waiting: not under the lock -----------------------------------------------------------------------------------

    def _wait(self, request: requests.Request) -> None:
        while True:
            with self._lock:
                if request.done:
                    return
                leads = self._take_lead()
                signal = None if leads else request.will_wait()
            if signal is None:
                break
            signal.acquire()
        try:
            while not request.done:
                self._move_bytes_once(timeout=self._request_timeout or None)
        finally:
            self._hand_over_lead()

    def _move_bytes_once(self, timeout: float | None) -> None:
        """Wait until bytes can be moved, and move them; only the leader does this."""
        with self._lock:
            if self._handle is None or self._is_abandoned:
                return
            self._polling = self._library.nbd_aio_get_direction(self._handle)
            self._poll.register(self._fd, nbd_connecting.EVENTS[self._polling])
            deadline = self._cancel_deadline
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            timeout = left if timeout is None else min(timeout, left)
        ready = dict(self._poll.poll(None if timeout is None else timeout * 1000))
        with self._lock:
            direction, self._polling = self._polling, 0
            if self._handle is None:
                return
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            if deadline is not None and time.monotonic() >= deadline:
                self._abandon()
            elif self._fd in ready:
                self._move_bytes(direction, ready[self._fd])
            elif not ready and timeout and deadline is None:
                text = f"the server has been silent for {timeout:g} s with requests in flight"
                self._fail(OSError(errno.ETIMEDOUT, text))
            patience = self._request_timeout * PATIENCE
            if patience and self._requests.are_overdue(patience):
                text = f"the server has answered no request for {patience:g} s, although bytes came"
                self._fail(OSError(errno.ETIMEDOUT, text))

    def _hand_over_lead(self) -> None:
        with self._lock:
            self._leading = False
            self._polling = 0
            self._requests.wake_one()  # a follower, which leads then
            if self._handle is None:
                self._release_wake_fd()

    # -- under the lock ------------------------------------------------------------------------------------------------

    def _open_handle(self) -> int:
        if self._handle is None:
            assert self._failure is not None
            raise requests.copy(self._failure)
        if self._is_abandoned:
            raise nbd_connecting.not_begun()
        return self._handle

    def _take_lead(self) -> bool:
        taken = not self._leading
        self._leading = True
        return taken

    def _move_bytes(self, direction: int, events: int) -> None:
        if nbd_connecting.notify(self._library, self._handle, direction, events) == -1:
            self._fail(_libnbd.last_error(self._library, errno.ENOTCONN))
            return
        self._requests.collect_answered(self._handle)
        if nbd_connecting.is_over(self._library, self._handle):
            self._fail(OSError(errno.ENOTCONN, "the server closed the connection"))

    def _fail(self, error: OSError) -> None:
        """Close libnbd's handle; what is in flight and whatever comes later fails with `error`."""
        if self._handle is None:
            return
        self._failure = error
        if not self._requests and self._library.nbd_aio_is_ready(self._handle) == 1:
            self._library.nbd_aio_disconnect(self._handle, 0)  # the server need not complain then
        self._library.nbd_close(self._handle)
        self._handle = None
        self._requests.fail(error)
        if self._polling:
            os.eventfd_write(self._wake_fd, 1)

    def _abandon(self) -> None:
        """Have all requests fail, and move nothing any more. Their buffers are referenced as long as the handle lives.
        """
        self._is_abandoned = True
        self._requests.abandon(nbd_connecting.cancelled_error())

    def _release_wake_fd(self) -> None:
        """Close the eventfd; a leader may still be polling it and does this itself when it leaves."""
        if not self._leading and self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1
