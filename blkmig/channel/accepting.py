# SPDX-License-Identifier: GPL-2.0-or-later
"""First come, first served, among those who come with a stream.

::

    listening ──► candidates, at most 16 beside each other ──► the first whose stream has begun as it must
                    │
                    ├─ who says that it measures the link: its bytes are counted (see `measured`)
                    └─ closed: the wrong first bytes, an end, nothing within 10 s, or a 17th came

So port scans, other protocols and connections that say nothing cost a receiver nothing, and hold nobody up: a real
sender says its first bytes in the moment in which it is accepted. One thread; waits hear the link's cancel.
"""

from __future__ import annotations

import errno
import logging
import socket
import time

from .. import errors
from . import link, measured, measuring, sockets

logger = logging.getLogger(__name__)

OPENING_SECONDS = 10.0
"""How long a connection may take to say how its stream begins."""

MAX_CANDIDATES = 16
"""Connections that have not begun yet, at most; the one that has been silent for longest makes room."""

GONE = (
    *(errno.ECONNABORTED, errno.EAGAIN, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET),
    *(errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM),
)
"""What Linux says of a connection that was lost before it was accepted, or that a firewall refuses."""

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Candidate:
    """A connection that has to show what it is, until `deadline`."""

    def __init__(self, sock: socket.socket, listening: str) -> None:
        self.socket = sock
        self.begun = b""
        self.deadline = time.monotonic() + OPENING_SECONDS
        self.name = sockets.peer_uri(sock, listening)

    def read(self, nbytes: int) -> bool:
        """Read what has come of the first `nbytes`; False at the end of the connection, or when it broke."""
        try:
            got = self.socket.recv(nbytes - len(self.begun))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.begun += got
        return bool(got)

    def drop(self, why: str) -> None:
        """Close the connection, which was none of ours."""
        logger.info("a connection from %s was closed: %s", self.name, why)
        sockets.shut_and_close(self.socket)


class Reception:
    """The connections of one accept(): wait for the first that has sent `nbytes` bytes which begin with `magic`."""

    def __init__(
        self,
        connection: link.Link,
        listening: socket.socket,
        measurements: measured.Measurements,
        *,
        magic: bytes,
        nbytes: int,
    ) -> None:
        self._link = connection
        self._listening = listening
        self._magic = magic
        self._nbytes = nbytes
        self._candidates: dict[int, Candidate] = {}
        self._measurements = measurements

    def first(self, timeout: float | None) -> Candidate:
        """Return the first that begins; the others are closed. Raises ChannelTimeout, Cancelled and ChannelError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                ready = self._wait(deadline)
                # First those who are there: one of them may be the sender, and a new connection would push it out.
                for fd in ready & self._candidates.keys():
                    if (winner := self._hear(fd)) is not None:
                        return winner
                if self._listening.fileno() in ready:
                    self._accept()
                self._measurements.hear(ready)
                self._drop_the_silent()
                if deadline is not None and time.monotonic() >= deadline:
                    why = f"nobody connected within {timeout:g} s with a migration"
                    raise errors.ChannelTimeout("waiting for the source", uri=self._link.uri, cause=why)
        finally:
            self._measurements.stop_counting()
            for candidate in self._candidates.values():
                candidate.drop("a migration comes in from elsewhere, or nobody waits any more")
            self._candidates.clear()

    def _wait(self, deadline: float | None) -> set[int]:
        """Return the descriptors that have something to say."""
        moments = [candidate.deadline for candidate in self._candidates.values()] + self._measurements.moments()
        if deadline is not None:
            moments.append(deadline)
        seconds = None if not moments else max(0.0, min(moments) - time.monotonic())
        return self._link.wait_any(seconds, [self._listening.fileno(), *self._candidates, *self._measurements.fds()])

    def _accept(self) -> None:
        """Take one more connection; without room or descriptors, in place of the one that has waited longest."""
        if len(self._candidates) >= MAX_CANDIDATES:
            self._drop_the_oldest("others have come, and it has said nothing yet")
        try:
            sock = self._listening.accept()[0]
        except OSError as error:
            if error.errno in GONE:
                return
            if error.errno in OUT_OF_DESCRIPTORS and self._candidates:
                self._drop_the_oldest("descriptors or memory have run out")
                return
            raise errors.ChannelError("accepting a connection", uri=self._link.uri, cause=error) from error
        sock.setblocking(False)
        self._candidates[sock.fileno()] = Candidate(sock, self._link.uri)

    def _hear(self, fd: int) -> Candidate | None:
        """Read of one connection, and return it if its stream has begun."""
        candidate = self._candidates[fd]
        alive = candidate.read(self._nbytes)
        seen = candidate.begun[: len(self._magic)]
        if alive and measuring.HEADER.startswith(candidate.begun):
            if candidate.begun == measuring.HEADER:
                self._measurements.take(self._candidates.pop(fd).socket)
        elif not self._magic.startswith(seen):
            self._drop(fd, f"this is no migration, it starts with {candidate.begun.hex(' ')}", said=True)
        elif not alive:
            self._drop(fd, "it ended before its stream began")
        elif len(candidate.begun) == self._nbytes:
            return self._candidates.pop(fd)
        return None

    def _drop_the_silent(self) -> None:
        now = time.monotonic()
        for fd, candidate in list(self._candidates.items()):
            if now >= candidate.deadline:
                self._drop(fd, f"its stream did not begin within {OPENING_SECONDS:g} s", said=True)

    def _drop_the_oldest(self, why: str) -> None:
        self._drop(min(self._candidates, key=lambda fd: self._candidates[fd].deadline), why)

    def _drop(self, fd: int, why: str, *, said: bool = False) -> None:
        candidate = self._candidates.pop(fd)
        if said:  # who meant to send should find out why nothing comes
            logger.warning("a connection from %s was closed: %s", candidate.name, why)
        candidate.drop(why)
