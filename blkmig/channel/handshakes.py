# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection that has to agree on TLS, and to be that of a sender who is allowed, before its stream begins.

::

    ClientHello ─ certificate, Finished ─ is it allowed? ─ the first bytes of the stream

A handshake is gone on with whenever something has come, so many go on beside each other in one thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

from . import candidates, link, records, secured, session, tls, uri


class SecuredCandidate(candidates.Candidate):
    """A connection that has to agree on TLS first, and to be that of a sender who is allowed."""

    is_plain = False
    address_kind = uri.TlsAddress

    def __init__(self, sock: socket.socket, listening: str, security: tls.Security) -> None:
        super().__init__(sock, listening)
        self._security = security
        self._session = session.Session(security.context, sock, hostname=None)
        self._room = memoryview(bytearray(session.RECORD))

    @property
    def is_ready(self) -> bool:
        """Return whether the handshake is over, and the sender allowed."""
        return self._session.is_secure

    @property
    def has_tried(self) -> bool:
        """Return whether it has begun a handshake that is not over."""
        return self._session.speaks_tls and not self._session.is_secure

    def read(self, nbytes: int) -> bool:
        """Go on with the handshake, and then read what has come of the stream; it may be more than `nbytes`."""
        try:
            alive = self._session.take(self._room)
            self.progress = max(self.progress, 1)
            if not self._session.is_secure and self._session.shake_hands():
                self._check_is_allowed()
            while self._session.is_secure and len(self.begun) < nbytes and (got := self._session.decrypt(self._room)):
                self.begun += self._room[:got]
            return self._session.flush() and alive and not self._session.has_ended
        except ssl.SSLError as error:
            raise candidates.Refused(tls.meaning(error)) from error
        except session.NotSecure as error:
            raise candidates.Refused(str(error)) from error
        except OSError:
            return False

    def _check_is_allowed(self) -> None:
        why_not = tls.why_not_allowed(self._session.peer(), self._security.allowed_peers)
        if time.monotonic() > self._security.expires_at:
            why_not = "the token is too old: start the receiver again, which makes a new one"
        if why_not:
            self._session.is_secure = False
            self._session.say_goodbye()
            raise candidates.Refused(why_not)
        self.progress = 2

    def transport(self, connection: link.Link) -> link.Transport:
        """Return the stream. Raises OSError, with everything closed."""
        return secured.SecuredTransport(connection, self.socket, records.Records(self._session))

    def say_no(self) -> None:
        """Send the alert that OpenSSL has made, or the one for who does not speak TLS."""
        with contextlib.suppress(OSError):
            if self._session.has_unsent:
                self._session.flush()
            elif not self._session.speaks_tls:
                self.socket.send(session.REFUSAL)
