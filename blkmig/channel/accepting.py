# SPDX-License-Identifier: GPL-2.0-or-later
"""First come, first served, among those who come with a stream.

::

    listening ──► candidates, at most 16 beside each other ──► the first whose stream has begun as it must
                    │
                    ├─ who says that it measures the link: its bytes are counted (see `measured`)
                    └─ closed: the wrong first bytes, no TLS where it must be, an end, nothing within 10 s,
                       or a 17th came, or the 5th of one address
    not heard yet: others have failed to prove who they are where it comes from (see `refusals`)

So port scans, other protocols and connections that say nothing cost a receiver nothing, and hold nobody up: a real
sender says its first bytes in the moment in which it is accepted. One thread; waits hear the link's cancel.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterable, Sequence

from .. import errors, logs
from . import candidates, link, measured, measuring, refusals

logger = logs.Logger(__name__)

MAX_CANDIDATES = 16
MAX_PER_ADDRESS = 4
"""Connections that have not begun yet, at most, in all and of one address. For another one, of those that have shown
least of what they are, the one makes room that is there for longest."""

TLS_BEGINS = b"\x16\x03"
STREAM_BEGINS = b"QEVM"
AGAIN_BEGINS = b"blkS"
"""How these begin whose right place is another one: see `savevm.container`."""

GONE = (
    *(errno.ECONNABORTED, errno.EAGAIN, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET),
    *(errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM),
)
"""What Linux says of a connection that was lost before it was accepted, or that a firewall refuses."""

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Reception:
    """The connections that come: wait for the first that has sent `nbytes` bytes which begin with one of `magics`.

    Without any, they begin as they like. That list may change meanwhile. Of one that begins with the bytes of `short`,
    as many are enough as it says. Who has not begun when one comes may do so in the next wait, if there is one.
    """

    def __init__(
        self,
        connection: link.Link,
        listening: socket.socket,
        measurements: measured.Measurements,
        failed: refusals.Refusals,
        *,
        make: Callable[[socket.socket], candidates.Candidate],
        magics: Sequence[bytes],
        nbytes: int,
        short: tuple[bytes, int] | None = None,
    ) -> None:
        self._link = connection
        self._listening = listening
        self.magics = magics
        self._nbytes = nbytes
        self._short = short
        self._make = make
        self._candidates: dict[int, candidates.Candidate] = {}
        self._measurements = measurements
        self._failed = failed

    def first(self, timeout: float | None) -> candidates.Candidate:
        """Return the first that begins. Raises ChannelTimeout, Cancelled and ChannelError."""
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
                    why = f"nobody connected within {timeout:g} s with a migration{self._who_failed}"
                    raise errors.ChannelTimeout("waiting for the source", uri=self._link.uri, cause=why)
        finally:
            self._measurements.stop_counting()

    def close(self) -> None:
        """Close those that have not begun."""
        for candidate in self._candidates.values():
            candidate.drop("a migration comes in from elsewhere, or nobody waits any more")
        self._candidates.clear()

    def _wait(self, deadline: float | None) -> set[int]:
        """Return the descriptors that have something to say."""
        now = time.monotonic()
        heard = [fd for fd, candidate in self._candidates.items() if candidate.heard_from <= now]
        moments = [candidate.moment(now) for candidate in self._candidates.values()] + self._measurements.moments()
        if deadline is not None:
            moments.append(deadline)
        seconds = None if not moments else max(0.0, min(moments) - now)
        return self._link.wait_any(seconds, [self._listening.fileno(), *heard, *self._measurements.fds()])

    @property
    def _who_failed(self) -> str:
        return f", and {self._failed.count} did that could not prove that they may" if self._failed.count else ""

    def _accept(self) -> None:
        """Take one more connection; without room or descriptors, in place of another one."""
        try:
            sock = self._listening.accept()[0]
        except OSError as error:
            if error.errno in GONE:
                return
            if error.errno in OUT_OF_DESCRIPTORS and self._candidates:
                self._drop_the_least(self._candidates, "descriptors or memory have run out")
                return
            raise errors.ChannelError("accepting a connection", uri=self._link.uri, cause=error) from error
        sock.setblocking(False)
        candidate = self._make(sock)
        if not candidate.is_admitted:
            logger.warning("a connection from %s was closed: its address is not allowed (--allow)", candidate.name)
            candidate.drop("its address is not allowed")
            return
        self._make_room(candidate.host)
        candidate.hold(self._failed.seconds(candidate.host))
        self._candidates[sock.fileno()] = candidate

    def _make_room(self, host: str) -> None:
        """Have room for one more connection, from `host`."""
        why = "others have come, and it has not begun yet"
        same = [fd for fd, candidate in self._candidates.items() if host and candidate.host == host]
        if len(same) >= MAX_PER_ADDRESS:
            self._drop_the_least(same, why, is_its_own=True)
        elif len(self._candidates) >= MAX_CANDIDATES:
            self._drop_the_least(self._candidates, why)

    def _hear(self, fd: int) -> candidates.Candidate | None:
        """Read of one connection, and return it if its stream has begun."""
        candidate = self._candidates[fd]
        if candidate.is_refused:
            if not candidate.read_on():
                self._drop(fd, "it was refused")
            return None
        try:
            alive = candidate.read(self._nbytes_of(candidate.begun))
        except candidates.Refused as error:
            candidate.refuse(f"{error}{self._failed.note(candidate.host)}")
            return None
        if alive and candidate.is_plain and measuring.HEADER.startswith(candidate.begun):
            if candidate.begun == measuring.HEADER:
                self._measurements.take(self._candidates.pop(fd).socket)
        elif not self._may_begin(candidate.begun):
            self._drop(fd, _no_migration(candidate.begun[: self._nbytes]), said=True)
        elif not alive:
            self._drop(fd, "it ended before its stream began", is_its_own=True)
        elif candidate.is_ready and self._has_begun(candidate.begun):
            self._failed.forget(candidate.host)
            return self._candidates.pop(fd)
        return None

    def _nbytes_of(self, begun: bytes) -> int:
        """Return how many first bytes are read of one that has begun so. Behind a header of `measuring` is payload."""
        return self._nbytes if len(begun) >= len(measuring.HEADER) else min(self._nbytes, len(measuring.HEADER))

    def _may_begin(self, begun: bytes) -> bool:
        return not self.magics or any(magic.startswith(begun[: len(magic)]) for magic in self.magics)

    def _has_begun(self, begun: bytes) -> bool:
        if self._short is not None and begun.startswith(self._short[0]):
            return len(begun) >= self._short[1]
        return len(begun) >= self._nbytes

    def _drop_the_silent(self) -> None:
        now, seconds = time.monotonic(), candidates.OPENING_SECONDS
        for fd, candidate in list(self._candidates.items()):
            if now >= candidate.deadline:
                why, said = f"its stream did not begin within {seconds:g} s", not candidate.is_refused
                self._drop(fd, why, said=said, is_its_own=True)

    def _drop_the_least(self, among: Iterable[int], why: str, *, is_its_own: bool = False) -> None:
        """Drop the one that has shown least of what it is, and of several the one that came first."""
        seen = self._candidates
        self._drop(min(among, key=lambda fd: (seen[fd].progress, seen[fd].deadline)), why, is_its_own=is_its_own)

    def _drop(self, fd: int, why: str, *, said: bool = False, is_its_own: bool = False) -> None:
        """Close a connection; where `is_its_own` says that this is due to where it came from, that may be a failure."""
        candidate = self._candidates.pop(fd)
        if is_its_own and candidate.has_tried and not candidate.is_refused:
            why += self._failed.note(candidate.host)
        if said:  # who meant to send should find out why nothing comes
            logger.warning("a connection from %s was closed: %s", candidate.name, why)
        candidate.drop(why)


def _no_migration(begun: bytes) -> str:
    if begun.startswith(TLS_BEGINS):
        return "it begins TLS, and this receiver listens for a plain stream: say tls: here, or tcp: there"
    if begun.startswith(STREAM_BEGINS):
        return "it begins another migration than the one that this receiver is for"
    if begun.startswith(AGAIN_BEGINS):
        return "it wants to go on with a session that another receiver began: end it, and send with --resume"
    return f"this is no migration, it starts with {begun.hex(' ')}"
