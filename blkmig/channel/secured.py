# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream over TLS: the handshake of who connects, and the transport whose records compiled code has sealed."""

from __future__ import annotations

import contextlib
import errno
import functools
import hmac
import math
import os
import select
import socket
import ssl
import time

from .. import errors
from . import buffers, link, records, session, sockets, tls

DOING = "TLS handshake"

STRANGER = "who answers is not the receiver that has made the token: somebody else listens there, or it is an old token"

CLOSED = "the other end closed the link: it speaks no TLS (then say tcp:), or does not want this end: see its messages"


class SecuredTransport(link.Transport):
    """One direction of a stream over TLS. Both have the same records."""

    is_sealed = True
    takes_pages = False

    def __init__(
        self, connection: link.Link, sock: socket.socket, sealed: records.Records, *, is_answer: bool = False
    ) -> None:
        super().__init__(connection, sock, is_answer=is_answer)
        self._sock = sock
        self._records = sealed
        self._records.users += 1
        self.seal, self.unseal = sealed.seal, functools.partial(sealed.unseal, sock)

    def other_direction(self) -> link.Transport | None:
        """Return the other direction of the same stream. Raises OSError."""
        return SecuredTransport(self.link, self._sock.dup(), self._records, is_answer=True)

    def say_goodbye(self, patience: float) -> None:
        """Send TLS's goodbye. Raises OSError, and Cancelled."""
        words, queued = memoryview(self._records.goodbye()), math.inf
        while words:
            try:
                words = words[self._sock.send(words) :]
            except BlockingIOError:
                if not self.link.wait(patience or None, self.fd, select.POLLOUT):
                    before, queued = queued, buffers.unsent_nbytes(self.fd)
                    if queued >= before:
                        raise OSError(errno.ETIME, os.strerror(errno.ETIME)) from None

    def last_words(self, data: bytes) -> bytes:
        """Return what is to be sent for `data`, behind which nothing follows. Raises OSError."""
        return self._records.seal(memoryview(data)) + self._records.goodbye()

    def wait_readable(self, seconds: float) -> bool:
        """Return whether something can be got, or can within `seconds`."""
        end = time.monotonic() + seconds
        while not self._records.has_come(self._sock):
            if not self.link.wait(end - time.monotonic(), self.fd):
                return False
        return True

    def close(self, how: int = socket.SHUT_RDWR) -> None:
        """Give the descriptor back. With the last one, drop what has come and nobody has read."""
        if self.fd >= 0:
            self._records.users -= 1
            if not self._records.users:
                self._records.drain(self._sock)
        super().close(how)

    def why_broken(self) -> OSError | None:
        """Return why TLS broke: a peer that does not accept this end says so, and closes the link."""
        if self.fd >= 0:
            self._records.has_come(self._sock)
        return self._records.broken

    def end_words(self) -> str:
        """Return what is to be said of an end without TLS's goodbye."""
        return ": it was cut off, the other end has not said goodbye" if self._records.is_cut else ""


def connect(connection: link.Link, sock: socket.socket, trust: tls.Trust, *, deadline: float) -> SecuredTransport:
    """Agree on TLS with who is at the other end of `sock`, and return the stream.

    Raises ChannelTimeout at the `deadline` of ``time.monotonic``, Cancelled, and ChannelError.
    """
    try:
        secured = session.Session(trust.context, sock, hostname=trust.hostname)
    except ValueError as error:
        sockets.shut_and_close(sock)
        why = f"{trust.hostname!r} is no name of a host that a certificate could have: see --tls-hostname"
        raise errors.ParameterError(why) from error
    try:
        _shake_hands(connection, secured, deadline)
        if trust.pin is not None and not hmac.compare_digest(secured.fingerprint(), trust.pin):
            raise session.NotSecure(STRANGER)
    except BaseException as error:
        with contextlib.suppress(OSError):
            secured.flush()  # an alert, which tells the other end why
        sockets.shut_and_close(sock)
        if isinstance(error, OSError | session.NotSecure):
            raise errors.ChannelError(DOING, uri=connection.uri, cause=_why(error)) from error
        raise
    return SecuredTransport(connection, sock, records.Records(secured))


def _shake_hands(connection: link.Link, secured: session.Session, deadline: float) -> None:
    room = memoryview(bytearray(session.RECORD))
    while not secured.shake_hands() or not secured.flush():
        secured.flush()
        events = select.POLLIN | (select.POLLOUT if secured.has_unsent else 0)
        if not connection.wait(deadline - time.monotonic(), secured.socket.fileno(), events):
            why = "the other end has not finished it in time (--connect-timeout): it may wait for a plain stream"
            raise errors.ChannelTimeout(DOING, uri=connection.uri, cause=why)
        if not secured.is_secure and not secured.take(room):
            raise session.NotSecure(CLOSED)


def _why(error: OSError | session.NotSecure) -> OSError | str:
    if isinstance(error, ssl.SSLError):
        return tls.meaning(error)
    if isinstance(error, session.NotSecure):
        return str(error) if str(error) in (CLOSED, STRANGER) else tls.NO_TLS
    return OSError(error.errno, f"{error.strerror}: {CLOSED}") if isinstance(error, ConnectionError) else error
