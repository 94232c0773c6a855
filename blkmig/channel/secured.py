# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream over TLS: the handshake of who connects, and the transport whose descriptor is an end of the pump's pair."""

from __future__ import annotations

import contextlib
import hmac
import select
import socket
import ssl
import time

from .. import errors
from . import link, pump, session, sockets, tls

DOING = "TLS handshake"

STRANGER = "who answers is not the receiver that has made the token: somebody else listens there, or it is an old token"

CLOSED = "the other end closed the link: it speaks no TLS (then say tcp:), or does not want this end: see its messages"


class SecuredTransport(link.Transport):
    """One direction of a stream over TLS. Both have the same pump, and the last one that is closed ends it."""

    is_sealed = True
    takes_pages = False

    def __init__(self, connection: link.Link, near: socket.socket, moved_by: pump.Pump, *, is_answer: bool) -> None:
        super().__init__(connection, near, is_answer=is_answer)
        self._pump = moved_by
        self._pump.users += 1

    @property
    def peer_socket(self) -> socket.socket | None:
        """Return the socket that leads to the peer."""
        return self._pump.socket

    def other_direction(self) -> link.Transport | None:
        """Return the other direction of the same stream. Raises OSError."""
        assert self.socket is not None
        return SecuredTransport(self.link, self.socket.dup(), self._pump, is_answer=True)

    def await_sent(self, patience: float) -> None:
        """Wait until all of it has left the pump, of which `patience` seconds see something. Raises OSError."""
        self._pump.await_sent(self.link, patience)

    def close(self, how: int = socket.SHUT_RDWR) -> None:
        """Give the descriptors back, and with the last one end the pump."""
        is_first, self.fd = self.fd >= 0, -1
        super().close(how)
        self._pump.users -= is_first
        if is_first and not self._pump.users:
            self._pump.join()

    def reset(self) -> None:
        """Make the peer see that the link broke; never raises."""
        self._pump.reset()

    def has_left(self) -> bool:
        """Return whether the peer's machine has everything that was put. Raises OSError if the link broke."""
        if link.unsent_nbytes(self.fd) or self._pump.is_busy:  # in the order in which bytes pass
            return False
        return not self._pump.queued()

    def why_broken(self) -> OSError | None:
        """Return why the link broke."""
        return self._pump.broken

    def end_words(self) -> str:
        """Return what is to be said of an end without TLS's goodbye."""
        return ": it was cut off, the other end has not said goodbye" if self._pump.is_cut else ""


def transport(connection: link.Link, secured: session.Session) -> SecuredTransport:
    """Return the stream over a session whose handshake is over. Raises OSError; the session is closed then."""
    try:
        near, far = socket.socketpair()
    except OSError:
        sockets.shut_and_close(secured.socket)
        raise
    try:
        for sock in (near, far):
            sockets.tune(sock)
            sock.setblocking(False)
        return SecuredTransport(connection, near, pump.Pump(secured, far), is_answer=False)
    except BaseException:
        for sock in (near, far, secured.socket):
            sockets.shut_and_close(sock)
        raise


def connect(
    connection: link.Link, sock: socket.socket, trust: tls.Trust, *, deadline: float
) -> SecuredTransport:
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
    try:
        return transport(connection, secured)
    except OSError as error:
        raise errors.ChannelError("opening", uri=connection.uri, cause=error) from error


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
