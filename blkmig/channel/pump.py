# SPDX-License-Identifier: GPL-2.0-or-later
"""The pump of a stream over TLS: a thread between the socket and a pair of Unix sockets.

::

    _output, _input ◄──► near ═══ far ◄── pump ──► TLS ◄──► socket ◄──► peer
       (any thread)        the pair      (its thread)

So compiled code drives a descriptor as it does any other, and what is encrypted leaves beside what is being read. One
thread moves both directions, because OpenSSL's object serves one at a time; it waits for nothing but readiness. It
hands on what is there and never collects, so that what was paced stays paced.

Of each direction it holds one piece, and takes the next when that has gone. So what the peer does not take comes to
stand in the pair, and the sender notices.

The end: a peer that says TLS's goodbye, or closes, ends the pair's other direction; what breaks TLS or the link ends
both, and `broken` says why. When `near` was shut for sending, everything is sent, then the goodbye, and then the socket
is shut for sending.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading

from .. import _output
from . import link, session, sockets, tls

PIECE_NBYTES = 1 << 18
"""What is encrypted, or decrypted, and sent in one go. It stays in the cache of the CPU: see docs/decisions/tls.md."""

LINGER_SECONDS = 1.0
"""How long what is left may take to leave when nobody here uses the stream any more; then the link is reset."""


class Pump:
    """Moves bytes between `far`, one end of a pair, and the peer of `secured`, until both have ended.

    Both sockets are its own from now on; if it raises OSError, they are the caller's.
    """

    def __init__(self, secured: session.Session, far: socket.socket) -> None:
        self._session = secured
        self.socket = secured.socket
        self._far = far
        self._sent_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Set by the pump, read by any thread.
        self.broken: OSError | None = None
        """Why the link is of no use any more, if it is not because both ends have closed it."""

        self.is_cut = False
        """The peer's end came without TLS's goodbye."""

        self.is_busy = False
        """Something that was taken from the pair has not been handed to the socket."""

        self.users = 0
        """Directions that are open; the migration thread's."""

        self._handed_over = 0  # bytes that the socket took
        # Under the lock: closing the socket and reaching for it from other threads exclude each other.
        self._lock = threading.Lock()
        self._is_over = False
        # The pump's own.
        self._plain = memoryview(bytearray(PIECE_NBYTES))
        self._room = memoryview(bytearray(PIECE_NBYTES))
        self._clear = memoryview(bytearray(PIECE_NBYTES))
        self._undelivered = memoryview(b"")
        self._has_all = False  # of what is to be sent
        self._has_sent_all = False
        self._is_deaf = False  # nobody reads `near`
        self._has_delivered_all = False
        self._has_hung_up = False  # both directions of the pair are shut
        link.keep_from_forks(self)
        self._thread = threading.Thread(target=self._run, name="blkmig-tls", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            os.close(self._sent_fd)
            raise OSError(errno.EAGAIN, str(error)) from error

    # -- any thread --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Break the connection at once: the peer sees no end, and gets nothing any more. Never raises."""
        with self._lock, contextlib.suppress(OSError):
            if not self._is_over:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, link.RESET_ON_CLOSE)
                _output.reset_connection(self.socket.fileno())

    def queued(self) -> int:
        """Return the bytes that the peer's machine does not have yet. Raises OSError if the link broke."""
        with self._lock:
            if self.broken is not None:
                raise self.broken
            return 0 if self._is_over else link.unsent_nbytes(self.socket.fileno())

    def await_sent(self, connection: link.Link, patience: float) -> None:
        """Wait until all that was put into `near`, which was shut, is the system's; what leaves starts `patience` anew.

        Raises Cancelled, and OSError, if it cannot leave, or nothing of it has for so many seconds, if not 0.
        """
        before = self._progress()
        while not connection.wait(patience or None, self._sent_fd):
            if (now := self._progress()) == before:
                raise OSError(errno.ETIME, os.strerror(errno.ETIME))
            before = now
        if self.broken is not None and not self._has_sent_all:
            raise self.broken

    def _progress(self) -> int:
        with contextlib.suppress(OSError):
            return self._handed_over - self.queued()
        return 0

    def join(self) -> None:
        """Wait for the end, after `near` was closed; a peer that takes nothing holds it up for `LINGER_SECONDS`."""
        self._thread.join(LINGER_SECONDS)
        if self._thread.is_alive():
            self.reset()
            self._thread.join()
        os.close(self._sent_fd)

    def forget(self) -> None:
        """Give up what this process has of it, because it is a forked child; the pump is not in it."""
        self._is_over = True
        self._lock = threading.Lock()  # a copy of the parent's may be held for ever here
        for sock in (self._far, self.socket):
            sock.close()
        os.close(self._sent_fd)

    # -- the pump's thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._deliver()  # what came with the handshake
            while not (self._has_sent_all and (self._has_delivered_all or self._is_deaf)):
                self._step()
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                self._session.flush()  # an alert, which tells the peer
            self.broken = OSError(errno.ECONNABORTED, tls.meaning(error))
        except OSError as error:
            self.broken = error
            self.reset()  # what was sent must not look whole
        except Exception as error:  # without memory, for one: whoever waits must hear of it
            self.broken = OSError(errno.ECONNABORTED, f"TLS failed: {error!r}")
        finally:
            self._end()

    def _step(self) -> None:
        """Wait until something can be done, and do it."""
        ready = self._wait()
        far, sock = ready.get(self._far.fileno(), 0), ready.get(self.socket.fileno(), 0)
        if far & select.POLLHUP:
            self._has_hung_up = self._is_deaf = True
            self._undelivered = memoryview(b"")
        if sock & (select.POLLOUT | select.POLLERR | select.POLLHUP) and self._session.has_unsent:
            self._send()
        if far and not self.is_busy and not self._has_all:
            self._take()
        if far and self._undelivered:
            self._deliver()
        if sock and self._wants_to_receive():
            self._receive()

    def _wait(self) -> dict[int, int]:
        poller = select.poll()
        far = 0 if self.is_busy or self._has_all else select.POLLIN
        far |= select.POLLOUT if self._undelivered else 0
        if far or not self._has_hung_up:
            poller.register(self._far.fileno(), far)
        sock = select.POLLIN if self._wants_to_receive() else 0
        sock |= select.POLLOUT if self._session.has_unsent else 0
        if sock:
            poller.register(self.socket.fileno(), sock)
        return dict(poller.poll())

    def _wants_to_receive(self) -> bool:
        return not (self._undelivered or self._has_delivered_all or self._is_deaf)

    def _take(self) -> None:
        """Take what is to be sent, and send it."""
        self.is_busy = True  # before it is taken, so that it is seen somewhere all the time
        try:
            nbytes = self._far.recv_into(self._plain)
        except BlockingIOError:
            self.is_busy = False
            return
        except ConnectionResetError:  # whoever closed `near` has left something unread
            nbytes = 0
        if nbytes:
            self._session.encrypt(self._plain[:nbytes])
        else:
            self._has_all = True
            self._session.say_goodbye()
        self._send()

    def _send(self) -> None:
        if self._session.flush():
            self.is_busy = False
            self._handed_over = self._session.sent
            if self._has_all and not self._has_sent_all:
                self._has_sent_all = True
                with contextlib.suppress(OSError):  # the peer may have gone, with all it wants
                    self.socket.shutdown(socket.SHUT_WR)
                os.eventfd_write(self._sent_fd, 1)

    def _receive(self) -> None:
        if not self._session.take(self._room):
            self.is_cut = not self._session.has_ended
        self._deliver()

    def _deliver(self) -> None:
        """Hand on what came, as far as whoever reads takes it; then its end."""
        while self._undelivered or (nbytes := self._session.decrypt(self._clear)):
            if not self._undelivered:
                self._undelivered = self._clear[:nbytes]
            try:
                self._undelivered = self._undelivered[self._far.send(self._undelivered) :]
            except BlockingIOError:
                return
            except OSError:  # nobody reads it any more
                self._is_deaf, self._undelivered = True, memoryview(b"")
                return
        if self._session.has_ended or self.is_cut:
            self._has_delivered_all = True
            with contextlib.suppress(OSError):
                self._far.shutdown(socket.SHUT_WR)

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            sockets.shut_and_close(self.socket)
        sockets.shut_and_close(self._far)
        os.eventfd_write(self._sent_fd, 1)
