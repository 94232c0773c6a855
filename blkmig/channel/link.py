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
import os
import select
import socket
import subprocess
import time

from .. import errors

CHILD_GRACE_SECONDS = 1.0
"""How long a command may take to end by itself when its channel is aborted, or to explain a broken pipe."""

CHILD_POLL_SECONDS = 0.005
"""How often a command is asked whether it has ended: the ways to be told are missing in old kernels and sandboxes."""


class Link:
    """The address, and the one flag and descriptor that wake every blocked call.

    The descriptor lives as long as the object, not until close(): a late cancel() must not write into a file that got
    its number in the meantime.
    """

    __slots__ = ("cancelled", "careful", "uri", "wake_fd")

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.cancelled = False
        # Whether calls must look twice, because something was cancelled, failed, closed or limited. Only ever set, by
        # anybody, so that it needs no lock.
        self.careful = False
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        """Give the descriptor back."""
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.wake_fd)

    def cancel(self) -> None:
        """Make every blocked and every later call raise Cancelled; from any thread or a signal handler."""
        self.cancelled = True
        self.careful = True
        os.eventfd_write(self.wake_fd, 1)

    def check(self) -> None:
        """Raise :class:`~blkmig.errors.Cancelled` if it was cancelled."""
        if self.cancelled:
            raise errors.Cancelled(f"cancelled [{self.uri}]")

    def wait(self, seconds: float | None, fd: int = -1, events: int = select.POLLIN) -> bool:
        """Wait until `fd` is ready, then True, or until `seconds` have passed, then False; raises Cancelled."""
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        if fd >= 0:
            poller.register(fd, events)
        ready = poller.poll(None if seconds is None else max(0.0, seconds) * 1000)
        self.check()
        return bool(ready)


class Transport:
    """One direction's descriptor and how it ends: `fd` is this object's own, a socket's stays with its object."""

    def __init__(
        self,
        link: Link,
        fd: int | socket.socket,
        *,
        sync: bool = False,
        child: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.link = link
        self.socket = fd if isinstance(fd, socket.socket) else None
        self.fd = fd.fileno() if isinstance(fd, socket.socket) else fd
        self.sync = sync
        self.child = child

    def other_direction(self) -> Transport | None:
        """Return the same socket for the other direction, None for what is not a socket. Raises OSError."""
        return None if self.socket is None else Transport(self.link, self.socket.dup())

    def is_local(self) -> bool:
        """Return whether this is a pipe or a connection within this machine; not one to a command."""
        return self.child is None if self.socket is None else is_local(self.socket)

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

    def close(self) -> None:
        """Give the descriptors back; twice does no harm. Raises OSError with everything closed nevertheless."""
        fd, self.fd = self.fd, -1
        if self.socket is not None:
            self.socket.close()
        elif fd >= 0:
            os.close(fd)

    def child_status(self, seconds: float | None) -> int | None:
        """Return the command's exit status as Popen gives it, None if it still runs then or there is none."""
        if self.child is None:
            return None
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.child.poll() is None and (deadline is None or time.monotonic() < deadline):
            self.link.wait(CHILD_POLL_SECONDS)
        return self.child.returncode

    def end_child(self) -> None:
        """Make the command end, by force if it must be, and forget it; never raises."""
        child, self.child = self.child, None
        if child is None:
            return
        for end in (child.terminate, child.kill):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                end()
                child.wait(CHILD_GRACE_SECONDS)
                return


def is_local(sock: socket.socket) -> bool:
    """Return whether the other end of a connected socket is on this machine, as far as one can see."""
    if sock.family == socket.AF_UNIX:
        return True
    with contextlib.suppress(OSError):
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    return False


def describe_status(status: int) -> str:
    """Return how a command ended, for a person."""
    if status < 0:
        return f"the command was ended by signal {-status}"
    hint = {126: ", it cannot be run", 127: ", it was not found"}.get(status, "")
    return f"the command ended with exit status {status}{hint}"
