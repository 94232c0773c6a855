# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS on a connected socket, which never waits: whoever has it waits for the socket, and then calls.

::

    shake_hands ◄─► OpenSSL ──► bytes to be sent ──► flush ──► socket
                            ◄── bytes that came  ◄── take  ◄── socket

    seal        ──► OpenSSL ──► bytes to be sent                        when the handshake is over, `records` has it,
    decrypt     ◄── OpenSSL ◄── came                                    and the socket is others'

OpenSSL works on memory, not on the socket: many records leave, and come, in one system call.

One thread at a time: OpenSSL's object must not serve two.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl

RECORD = 1 << 14
"""The most that a record of TLS holds. One is read as a whole: OpenSSL drops the rest of it when it says goodbye."""

HANDSHAKE = 0x16
"""The first byte of a connection that begins TLS."""

REFUSAL = bytes((0x15, 3, 3, 0, 2, 2, 10))
"""What TLS says to somebody who does not begin it: a fatal alert, "unexpected message". A blkmig knows it by sight."""


class NotSecure(Exception):
    """The other end does not speak TLS, or is not who it must be; the text says why."""


class Session:
    """TLS on `sock`, which does not block and is this object's own. `hostname` makes it the client's end."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket, *, hostname: str | None) -> None:
        self.socket = sock
        self._came, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._leaving, server_side=hostname is None, server_hostname=hostname)
        self._unsent = memoryview(b"")
        self._error: ssl.SSLError | None = None
        self.speaks_tls = False
        """What came first can be TLS."""

        self.is_secure = False
        """The handshake is over: the other end is who it must be, as far as it shows here."""

        self.has_ended = False
        """The other end has said that nothing more comes."""

    def take(self, room: memoryview) -> bool:
        """Take what the socket has, up to the length of `room`; False at its end. Raises OSError, and NotSecure."""
        try:
            nbytes = self.socket.recv_into(room)
        except BlockingIOError:
            return True
        if nbytes and not self.speaks_tls:
            if room[0] not in (HANDSHAKE, REFUSAL[0]):
                raise NotSecure(f"it speaks no TLS, it starts with {bytes(room[: min(nbytes, 8)]).hex(' ')}: a sender "
                                "says tls: in its address, as this receiver does")  # fmt: skip
            self.speaks_tls = True
        self.came(room[:nbytes])
        return nbytes > 0

    def came(self, data: memoryview) -> None:
        """Say what came."""
        self._came.write(data)

    def flush(self) -> bool:
        """Hand what is to be sent to the socket, as far as it takes it; True when nothing is left. Raises OSError."""
        while self.has_unsent:
            if not self._unsent:
                self._unsent = memoryview(self._leaving.read())
            try:
                nbytes = self.socket.send(self._unsent)
            except BlockingIOError:
                return False
            self._unsent = self._unsent[nbytes:]
        return True

    @property
    def has_unsent(self) -> bool:
        """Return whether something is to be sent."""
        return bool(self._unsent) or self._leaving.pending > 0

    def shake_hands(self) -> bool:
        """Go on with the handshake, as far as what came allows; True when it is over. Raises SSLError."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            self.is_secure = True
        return self.is_secure

    def peer(self) -> dict[str, object]:
        """Return what the other end's certificate says; it is verified."""
        return dict(self._tls.getpeercert() or {})

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of the other end's certificate, whoever signed it."""
        return hashlib.sha256(self._tls.getpeercert(True) or b"").digest()

    def seal(self, plain: memoryview) -> bytes:
        """Return what is to be sent for `plain`, with what OpenSSL has to say by itself. Raises SSLError."""
        done = 0
        while done < len(plain):
            done += self._tls.write(plain[done:])
        return self._leaving.read()

    @property
    def replies_nbytes(self) -> int:
        """Return the length of what OpenSSL has to say by itself."""
        return self._leaving.pending

    def replies(self) -> bytes:
        """Return that, as what is to be sent."""
        return self._leaving.read()

    def decrypt(self, room: memoryview) -> int:
        """Decrypt into `room`, of a record at least, what has come, and return how many bytes there are.

        0 if there are none yet, or ever. Raises SSLError, when what came before has been returned.
        """
        if self._error is not None:
            raise self._error
        done = 0
        try:
            while len(room) - done >= RECORD and not self.has_ended:
                nbytes = self._tls.read(RECORD, room[done:])
                self.has_ended = not nbytes
                done += int(nbytes)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        except ssl.SSLError as error:
            self._error = error
            if not done:
                raise
        return done

    def say_goodbye(self) -> None:
        """Have the other end told that nothing more comes from here; it may go on to send. Raises SSLError."""
        # OpenSSL looks for the other end's goodbye, and fails if it finds something else.
        came = self._came.read()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._came.write(came)
