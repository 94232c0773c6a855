# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that nothing can interrupt, such as the look-up of a host's name, or the close of a file, aside of who goes on.

The system's resolver may take minutes to say that no name server answers. Whoever wants its answer waits for a
descriptor, with whatever else ends a wait. When the wait is over first, the thread, a daemon, is left alone::

    caller   begin ─ wait for `fd` ─────────────────► result
                            └── time is over, cancelled ──► leave ─ goes on
    thread   the call ........................................................ returns: forgets the result

Of a close there is no result: a `Closer` is begun ahead, and given the descriptors when they are not needed any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Aside(Generic[Result]):
    """One call on its way, which begins at once.

    `forget` is called, in one of the two threads, when the call has returned and nobody wants its result: there, what
    it has made, or needed, is released. Must be left, which `with` does. Raises OSError if there can be no thread.
    """

    def __init__(
        self, call: Callable[[], Result], *, name: str, forget: Callable[[], object] = lambda: None
    ) -> None:
        self._call = call
        self._forget = forget
        # Under `_lock`: whoever comes second, the result or the one who leaves, forgets it.
        self._lock = threading.Lock()
        self._has_returned = False
        self._is_left = False
        # Set by the thread before `_has_returned`.
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable when the call has returned."""

        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self.fd)
            # A descriptor of the thread's own: ours is closed when we leave, and its number taken by others.
            fd = os.dup(self.fd)
            undo.callback(os.close, fd)
            try:
                threading.Thread(target=self._run, args=(fd,), daemon=True, name=name).start()
            except RuntimeError as error:  # what Python makes of EAGAIN
                raise OSError(errno.EAGAIN, str(error)) from error
            undo.pop_all()

    def __enter__(self) -> Aside[Result]:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave it."""
        self.leave()

    def result(self) -> Result:
        """Return what the call has returned, or raise its error; it has returned when `fd` is readable."""
        with self._lock:
            assert self._has_returned, "fd is readable"
            self._is_left = True  # taken, and not to be forgotten
        try:
            if self._error is not None:
                raise self._error
        finally:
            self._error = None  # whose traceback knows us
        return self._result[0]

    def leave(self) -> None:
        """Wait no more. Unless `result` was asked for, whatever the call returns is forgotten. Twice does no harm."""
        with self._lock:
            forgets, self._is_left = self._has_returned and not self._is_left, True
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        if forgets:
            self._forget()

    def _run(self, fd: int) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error = error
        with self._lock:
            self._has_returned = True
            is_left = self._is_left
        if is_left:
            self._forget()
        os.eventfd_write(fd, 1)
        os.close(fd)


class Closer:
    """A thread that closes descriptors of files which have no name any more: that frees their blocks.

    A file system that discards at once what it frees takes milliseconds for each, as ext4 does without a journal. The
    thread begins at once, because that takes up to a millisecond, too, and ends with the first `close`. Nobody waits
    for it.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Iterable[int]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="blkmig-close")
        with contextlib.suppress(RuntimeError):  # there can be none: then whoever calls `close` does it
            self._thread.start()

    def close(self, fds: Iterable[int]) -> None:
        """Close them soon, or now, in a forked child, say."""
        self._jobs.put(fds)
        if not self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # the thread has taken them, and has ended since
                _close(self._jobs.get_nowait())

    def _run(self) -> None:
        _close(self._jobs.get())


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # -1, or what nobody reads any more
            os.close(fd)


def await_answer(fd: int) -> None:
    """Return when the file system of `fd` answers, at once for most. Call it before a file is closed.

    Not even SIGKILL ends who closes a file of a FUSE server that is stopped; it does end this call.
    """
    with contextlib.suppress(OSError):
        os.fstatvfs(fd)


def is_number(host: str) -> bool:
    """Return whether `host` is an address as it is, so that nobody has to be asked for one. Does not block."""
    try:
        socket.getaddrinfo(host.encode() if host.isascii() else host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return True


def not_found_out(host: str, seconds: float) -> str:
    """Return what to say about a name for which no name server has had an answer in time."""
    return f"the name {host!r} is not found out within {seconds:g} s (check the name servers)"
