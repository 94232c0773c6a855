# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands behind an open channel: the link both directions share, and the transport of each direction.

::

    OutputQEMUFile ── Transport ─┐                    one descriptor each, closed on its own
                                 ├── Link             the address, and the word that it was cancelled
    InputQEMUFile ─── Transport ─┘
    (return path)

A link is cancelled from any thread or signal handler; everything else belongs to the thread that uses the direction.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import struct
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .. import _output, errors
from . import buffers

if TYPE_CHECKING:
    import subprocess

CHILD_GRACE_SECONDS = 1.0
"""How long a command may take to end by itself when its channel is aborted, or to explain a broken pipe."""

CHILD_POLL_SECONDS = 0.005
"""How often a command is asked whether it has ended: the ways to be told are missing in old kernels and sandboxes."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: on, for no time at all."""


class Link:
    """The address, and the one flag and descriptor that wake every blocked call.

    A late cancel() must not write into a file that got the descriptor's number in the meantime, so closing and waking
    exclude each other. The lock is re-entrant: a signal handler that cancels may interrupt either of them.
    """

    __slots__ = ("__weakref__", "_lock", "cancelled", "careful", "uri", "wake_fd")

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.cancelled = False
        # Whether calls must look twice, because something was cancelled, failed, closed or limited. Only ever set, by
        # anybody, so that it needs no lock.
        self.careful = False
        self._lock = threading.RLock()
        try:
            self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise errors.ChannelError("opening", uri=uri, cause=error) from error
        keep_from_forks(self)

    def __del__(self) -> None:
        """Give the descriptor back."""
        with contextlib.suppress(AttributeError, OSError):
            self.close()

    def close(self) -> None:
        """Give the descriptor back, with nothing of the channel in use any more; twice does no harm."""
        with self._lock:
            fd, self.wake_fd = self.wake_fd, -1
            self.careful = True
            if fd >= 0:
                os.close(fd)

    def cancel(self) -> None:
        """Make every blocked and every later call raise Cancelled; from any thread or a signal handler."""
        self.cancelled = True
        self.careful = True
        with self._lock:
            if self.wake_fd >= 0:  # else it is closed, or this is a forked child: there is nobody to wake
                os.eventfd_write(self.wake_fd, 1)

    def forget(self) -> None:
        """Give up what this process has of the link, because it is a forked child and not the link's owner."""
        self._lock = threading.RLock()  # a copy of the parent's lock may be held for ever here
        self.cancelled = True
        self.close()

    def check(self) -> None:
        """Raise :class:`~blkmig.errors.Cancelled` if it was cancelled."""
        if self.cancelled:
            raise errors.Cancelled(f"cancelled [{self.uri}]")

    def wait(self, seconds: float | None, fd: int = -1, events: int = select.POLLIN) -> bool:
        """Wait until `fd` is ready, then True, or until `seconds` have passed, then False; raises Cancelled."""
        return bool(self.wait_any(seconds, [fd] if fd >= 0 else [], events))

    def wait_any(self, seconds: float | None, fds: list[int], events: int = select.POLLIN) -> set[int]:
        """Wait as `wait` does for one of `fds`, and return those that are ready."""
        try:
            poller = select.poll()
            if self.wake_fd >= 0:
                poller.register(self.wake_fd, select.POLLIN)
            for fd in fds:
                poller.register(fd, events)
            ready = poller.poll(None if seconds is None else math.ceil(max(0.0, seconds) * 1000))
        except OSError as error:  # no memory
            raise errors.ChannelError("waiting", uri=self.uri, cause=error) from error
        self.check()
        return {fd for fd, _ in ready if fd != self.wake_fd}


_alive: weakref.WeakSet[Any] = weakref.WeakSet()
"""What a forked child must close: as long as it has a pipe's end or a socket, whoever reads there sees no end."""


def keep_from_forks(owner: Any) -> None:
    """Have forked children call ``owner.forget()``, as long as it lives."""
    _alive.add(owner)


class Transport:
    """One direction's descriptor and how it ends: `fd` is this object's own, a socket's stays with its object.

    `is_answer` is true of a direction that another one has made, which outlives the first and ends on its own.
    """

    def __init__(
        self,
        link: Link,
        fd: int | socket.socket,
        *,
        sync: bool = False,
        child: subprocess.Popen[bytes] | None = None,
        is_answer: bool = False,
        is_given: bool = False,
        local_file: str = "",
    ) -> None:
        self.link = link
        self.socket = fd if isinstance(fd, socket.socket) else None
        self.peer_sockets = [] if self.socket is None else [self.socket]  # what leads to the peer
        self.fd = fd.fileno() if isinstance(fd, socket.socket) else fd
        self.sync = sync
        self.child = child
        self.is_answer = is_answer
        self.is_given = is_given
        self.local_file = local_file
        """The path of a file or device of this machine, at which no peer can be; else ""."""

        keep_from_forks(self)

    def other_direction(self) -> Transport | None:
        """Return the same socket for the other direction, None for what is not a socket. Raises OSError."""
        if self.socket is None:
            return None
        return Transport(self.link, self.socket.dup(), is_answer=True, is_given=self.is_given)

    def is_local(self) -> bool:
        """Return whether this is a pipe or a connection within this machine; not one to a command."""
        return self.child is None and all(map(is_local, self.peer_sockets))

    is_sealed = False
    """Whether a bit that changes on the way breaks the link, as with TLS."""

    seal: buffers.Seal | None = None
    unseal: buffers.Unseal | None = None
    """What encrypts what leaves, and what receives and decrypts what comes, where it does not pass as it is."""

    takes_pages = True
    """Whether pages may pass through the descriptor instead of copies, where it is one that can."""

    @property
    def is_tcp(self) -> bool:
        """Return whether the descriptor is a TCP connection."""
        return self.socket is not None and self.socket.family in (socket.AF_INET, socket.AF_INET6)

    def finish_sending(self) -> None:
        """Say that nothing more will come: files are brought to stable storage, a peer sees the end. Raises OSError.

        A socket may be gone by now because the peer has all it wants, which is no error; that it got everything is
        said by the return path, never by shutdown().
        """
        if self.sync:
            os.fsync(self.fd)
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def close(self, how: int = socket.SHUT_RDWR) -> None:
        """Give the descriptors back; twice does no harm. Raises OSError with everything closed nevertheless.

        A socket is shut down first, the directions that `how` says: another process may have it, too, a forked child
        of this one, and closing would not be seen by the peer as long as that one lives.
        """
        fd, self.fd = self.fd, -1
        if self.socket is not None:
            if how != socket.SHUT_RD or not self.is_given:  # the caller may have more to read from a socket of his
                with contextlib.suppress(OSError):
                    self.socket.shutdown(how)
            self.socket.close()
        elif fd >= 0:
            os.close(fd)

    def reset(self) -> None:
        """Make the peer see that the link broke, rather than an end; never raises. Close comes next.

        TCP knows a reset. On a Unix socket what was sent stays readable, but a peer cannot answer any more. A pipe has
        nothing of the kind: what its reader has, it keeps.
        """
        if self.socket is not None and self.is_tcp:
            with contextlib.suppress(OSError):  # for closing, should the next line not do
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            with contextlib.suppress(OSError):  # was not connected any more
                _output.reset_connection(self.socket.fileno())

    def has_left(self) -> bool:
        """Return whether the peer's machine has everything that was put into a socket. Raises OSError if it broke."""
        if self.socket is None:
            return True
        if code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        return not buffers.unsent_nbytes(self.fd)

    def why_broken(self) -> OSError | None:
        """Return why the link broke, where the descriptor itself does not tell."""
        return None

    def end_words(self) -> str:
        """Return what is to be said of an end that came too early."""
        return ""

    def say_goodbye(self, patience: float) -> None:
        """Send what is said at the end, unless the peer takes nothing for `patience` seconds; 0 is for ever."""

    def last_words(self, data: bytes) -> bytes:
        """Return what is to be sent for `data`, behind which nothing follows. Raises OSError."""
        return data

    def wait_readable(self, seconds: float) -> bool:
        """Return whether a byte or the end is there, or comes within `seconds`; raises Cancelled."""
        return self.link.wait(seconds, self.fd)

    def forget(self) -> None:
        """Give up what this process has of the channel, because it is a forked child and not the channel's owner."""
        self.child = None
        fd, self.fd = self.fd, -1
        if self.socket is not None:
            self.socket.close()
        elif fd >= 0:
            os.close(fd)

    def child_status(self, seconds: float | None) -> int | None:
        """Return the command's exit status as Popen gives it, None if it still runs then or there is none.

        Raises ChildProcessError if it has ended and nobody can say how.
        """
        if self.child is None:
            return None
        from .. import children  # here: only commands need it, and with it comes `subprocess`

        deadline = None if seconds is None else time.monotonic() + seconds
        while (status := children.exit_status(self.child)) is None:
            if deadline is not None and time.monotonic() >= deadline:
                break
            self.link.wait(CHILD_POLL_SECONDS)
        return status

    def end_child(self) -> None:
        """Make the command and what it has started end, by force if it must be, and forget it; never raises."""
        child, self.child = self.child, None
        if child is not None:
            from .. import children

            children.end(child, CHILD_GRACE_SECONDS)


def _forget_all() -> None:
    """Close, in a forked child, every channel of the process that forked it. That one's link stays as it is."""
    for alive in list(_alive):
        with contextlib.suppress(OSError):
            alive.forget()
    _alive.clear()


os.register_at_fork(after_in_child=_forget_all)


def is_local(sock: socket.socket) -> bool:
    """Return whether the other end of a connected socket is on this machine, as far as one can see."""
    if sock.family == socket.AF_UNIX:
        return True
    with contextlib.suppress(OSError):
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    return False
