# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of a stream over TLS: sealed and opened in the threads that send and receive, by their compiled code.

::

    _output ──► seal ──► what is to be sent ──► socket      whoever sends encrypts, and then sends, in this order
    _input  ◄── unseal ◄─────────────────────── socket      whoever receives reads the socket, and decrypts

Nothing waits here. OpenSSL's object must not serve two threads at once, so each call has a lock; it is held while
OpenSSL works, and never while somebody waits for the peer.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading

from . import session, tls

PIECE_NBYTES = 1 << 19
"""What is read from the socket, and decrypted, in one go: see docs/decisions/tls.md."""

MOST_REPLIES = 1 << 16
"""Bytes that OpenSSL may have to say by itself, while nothing is sent with which they would leave."""

TOO_MANY_REPLIES = "the other end asks for new keys again and again"


class Records:
    """Both directions of a session whose handshake is over."""

    def __init__(self, secured: session.Session) -> None:
        self.users = 0
        """Directions that are open; the migration thread's."""

        self.is_cut = False
        """The connection has ended, and the peer has not said goodbye."""

        self.broken: OSError | None = None
        """What has broken TLS."""

        # Under the lock.
        self._lock = threading.Lock()
        self._session = secured
        self._failed: OSError | None = None  # what has broken the connection, which tells it once
        self._room = memoryview(bytearray(PIECE_NBYTES))
        self._record = memoryview(bytearray(session.RECORD))
        self._opened = memoryview(b"")  # the rest of a record that nobody has had yet

    def seal(self, plain: memoryview) -> bytes:
        """Return what is to be sent for `plain`, before anything else that is sealed. Raises OSError."""
        with self._lock:
            try:
                return self._session.seal(plain)
            except ssl.SSLError as error:
                raise self._break(tls.meaning(error)) from error

    def goodbye(self) -> bytes:
        """Return what tells the peer that nothing more comes; b"" if it was said, or cannot be."""
        with self._lock:
            try:
                self._session.say_goodbye()
            except ssl.SSLError:
                return b""
            return self._session.replies()

    def unseal(self, sock: socket.socket, room: memoryview, many: bool) -> int | None:
        """Read `sock`, and fill `room` with what has come: as many records as fit, or one.

        Returns the bytes, 0 at the stream's end, None if nothing has come. Raises OSError.
        """
        with self._lock:
            if not self._opened and len(room) >= session.RECORD:
                return self._read(sock, room if many else room[: session.RECORD])
            nbytes = self._open_one(sock)
            if not nbytes:
                return nbytes
            nbytes = min(nbytes, len(room))
            room[:nbytes] = self._opened[:nbytes]
            self._opened = self._opened[nbytes:]
            return nbytes

    def has_come(self, sock: socket.socket) -> bool:
        """Return whether something can be got without waiting: a byte, the end, or why there is none."""
        with self._lock:
            try:
                return self._open_one(sock) is not None
            except OSError:
                return True

    def drain(self, sock: socket.socket) -> None:
        """Drop a goodbye that has come: closing a socket with unread bytes resets it, and what was said last is lost.

        A peer that goes on to send is reset, as it is to be.
        """
        with self._lock, contextlib.suppress(OSError):
            sock.recv_into(self._room)

    def _open_one(self, sock: socket.socket) -> int | None:
        """Have a record opened; return its bytes, 0 at the end, None if none has come."""
        if self._opened:
            return len(self._opened)
        nbytes = self._read(sock, self._record)
        self._opened = self._record[: nbytes or 0]
        return nbytes

    def _read(self, sock: socket.socket, room: memoryview) -> int | None:
        done = 0
        while True:
            try:
                done += self._session.decrypt(room[done:])
            except ssl.SSLError as error:
                if done:
                    return done  # it comes again
                failure = self._break(tls.meaning(error))
                with contextlib.suppress(OSError):
                    sock.send(self._session.replies())  # an alert, which tells the peer
                raise failure from error
            if self._session.has_ended or self.is_cut or len(room) - done < session.RECORD:
                return done
            if self._failed is not None and not done:
                raise self._failed
            if self._failed is not None or not self._receive(sock):
                return done or (0 if self.is_cut else None)

    def _receive(self, sock: socket.socket) -> bool:
        """Take what the socket has; False if that is nothing, or the end. What breaks is raised by who reads next."""
        try:
            nbytes = sock.recv_into(self._room)
        except BlockingIOError:
            return False
        except OSError as error:
            self._failed = error
            return True
        if self._session.replies_nbytes > MOST_REPLIES:
            self._failed = self._break(TOO_MANY_REPLIES)
        self._session.came(self._room[:nbytes])
        self.is_cut = not nbytes
        return nbytes > 0

    def _break(self, why: str) -> OSError:
        self.broken = OSError(errno.ECONNABORTED, why)
        return self.broken
