# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection that has to show what it is: how its stream begins. It is never waited for.

One that has to agree on TLS first is in `handshakes`.
"""

from __future__ import annotations

import contextlib
import socket
import time

from .. import logs
from . import link, sockets, uri

logger = logs.Logger(__name__)

OPENING_SECONDS = 10.0
"""How long a connection may take to say how its stream begins, and for the handshake before."""

REFUSED_SECONDS = 1.0
"""How long one that was refused is read on: closing a socket with unread bytes resets it, and loses the reason."""


READ_ON_NBYTES = 1 << 14


class Refused(Exception):
    """A connection is not what it must be; the text says why."""


class Candidate:
    """A connection that has to show what it is, until `deadline`."""

    is_plain = True
    address_kind = uri.TcpAddress

    def __init__(self, sock: socket.socket, listening: str, *, is_admitted: bool = True) -> None:
        self.socket = sock
        self.begun = b""
        self.deadline = time.monotonic() + OPENING_SECONDS
        self.heard_from = 0.0
        """When it may begin, on the clock of ``time.monotonic``: nothing is read of it before."""

        self.name = sockets.peer_uri(sock, listening, kind=self.address_kind)
        self.host = host_of(sock)
        self.progress = 0
        """How much it has shown of what it is; who has shown least makes room."""

        self.is_admitted = is_admitted
        """It comes from where connections may come from."""

        self.is_refused = False

    @property
    def is_ready(self) -> bool:
        """Return whether it is who it must be, so that its stream can begin."""
        return True

    @property
    def has_tried(self) -> bool:
        """Return whether it has begun to prove who it is, and has not done so yet."""
        return False

    def hold(self, seconds: float) -> None:
        """Have it wait for so long before it is heard; its time begins then."""
        self.heard_from = time.monotonic() + seconds
        self.deadline = self.heard_from + OPENING_SECONDS

    def moment(self, now: float) -> float:
        """Return when it is to be looked at next, even if it says nothing."""
        return self.heard_from if self.heard_from > now else self.deadline

    def read(self, nbytes: int) -> bool:
        """Read what has come of the first `nbytes`; False at the end of the connection, or when it broke.

        Raises :class:`Refused`.
        """
        try:
            got = self.socket.recv(nbytes - len(self.begun))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.begun += got
        self.progress = 1
        return bool(got)

    def transport(self, connection: link.Link) -> link.Transport:
        """Return the stream, of which `begun` was read. Raises OSError, with everything closed."""
        return link.Transport(connection, self.socket)

    def refuse(self, why: str) -> None:
        """End the conversation, and read on for a moment so that the last word is heard."""
        logger.warning("a connection from %s was closed: %s", self.name, why)
        self.is_refused, self.progress = True, -1
        self.deadline = time.monotonic() + REFUSED_SECONDS
        self.say_no()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def say_no(self) -> None:
        """Send what a connection is told that is refused."""

    def read_on(self) -> bool:
        """Drop what came after a refusal; False at the end."""
        try:
            return bool(self.socket.recv(READ_ON_NBYTES))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def drop(self, why: str) -> None:
        """Close the connection, which was none of ours."""
        logger.info("a connection from %s was closed: %s", self.name, why)
        sockets.shut_and_close(self.socket)


def host_of(sock: socket.socket) -> str:
    """Return the address of who is at the other end of an accepted `sock`; "" for a Unix socket, or if it has gone."""
    with contextlib.suppress(OSError):
        if sock.family != socket.AF_UNIX:
            return sockets.normalised(sock.getpeername()[0])
    return ""
