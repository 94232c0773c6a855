# SPDX-License-Identifier: GPL-2.0-or-later
"""An end of a link that plays a script: the source of a receiver under test, or the target of a sender.

A step is a function that is given the peer. Those in `steps.py` are enough for most scripts; others use
:meth:`Peer.say` and :meth:`Peer.read`, or the socket itself.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self, TypeAlias

from .. import unrun
from . import faults

PIECE = 1 << 18


class ScriptError(AssertionError):
    """The other end did not do what the script expects of it."""


def message(kind: int, data: bytes | int) -> bytes:
    """Return a message of the return path, as targets send them: a type, a length, and `data`; a number is 4 bytes."""
    payload = struct.pack(">I", data) if isinstance(data, int) else data
    return struct.pack(">HH", kind, len(payload)) + payload


class Peer:
    """One end of a link, which does what `steps` say, one after the other, in a thread; then it closes the link.

    Make it with :meth:`listening`, :meth:`connecting` or :meth:`paired`, and use it in a ``with``: leaving ends it
    wherever it is, and raises :class:`ScriptError` if the other end has not kept to the script, or what a step of yours
    has raised. That the link goes while the peer says something is no error.
    """

    def __init__(self, uri: str, meet: Callable[[], socket.socket], leave: Callable[[], object], *steps: Step) -> None:
        self.uri = uri
        """The address for the end under test."""

        self.received = bytearray()
        """What was read, in all."""

        self.over = threading.Event()
        """Set when the peer is to end."""

        for step in steps:
            try:
                if not callable(step):
                    raise TypeError(f"a step is a function that gets the peer, as say(...) returns one, not {step!r}")
                unrun.check("a step", step)
            except TypeError:
                leave()
                raise
        self._meet, self._leave, self._steps = meet, leave, steps
        self._sock: socket.socket | None = None
        self._pending = bytearray()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="blkmig-peer", daemon=True)
        self._thread.start()

    @classmethod
    def listening(cls, *steps: Step, uri: str = "tcp:127.0.0.1:0", buffer: int | None = None) -> Self:
        """Return a target, which listens at once: at ``unix:PATH`` or ``tcp:HOST:PORT``, port 0 for any.

        `buffer` is how many bytes the system keeps for it that it has not read, about.
        """
        scheme, _, rest = uri.partition(":")
        listener = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
        if buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if scheme == "unix":
            listener.bind(rest)
        else:
            host, _, port = rest.rpartition(":")
            listener.bind((host, int(port)))
            uri = f"tcp:{host}:{listener.getsockname()[1]}"
        listener.listen()

        def meet() -> socket.socket:
            with listener:
                return listener.accept()[0]

        return cls(uri, meet, lambda: listener.shutdown(socket.SHUT_RDWR), *steps)

    @classmethod
    def connecting(cls, uri: str, *steps: Step) -> Self:
        """Return a source that connects to a receiver at ``unix:PATH`` or ``tcp:HOST:PORT``, which listens by now."""
        scheme, _, rest = uri.partition(":")
        if scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(rest)
        else:
            host, _, port = rest.rpartition(":")
            sock = socket.create_connection((host, int(port)), faults.SECONDS)
            sock.settimeout(None)
        return cls(uri, lambda: sock, lambda: None, *steps)

    @classmethod
    def paired(cls, *steps: Step) -> Self:
        """Return a peer whose `uri` is the other end of a pair of sockets, ``fd:N``, open until the peer is left.

        So the peer sees no end of what comes on it before that, unless the other end shuts the link down.
        """
        mine, yours = socket.socketpair()
        return cls(f"fd:{yours.fileno()}", lambda: mine, yours.close, *steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._leave()
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(faults.SECONDS)
        if exc is None:
            self._check()

    def join(self) -> None:
        """Wait until all steps are made. Raises ScriptError if the other end has not kept to them, and as leaving."""
        self._thread.join(faults.SECONDS)
        self._check()

    @property
    def is_through(self) -> bool:
        """Whether the script has ended, or the link has gone."""
        return not self._thread.is_alive()

    # -- for steps ---------------------------------------------------------------------------------------------------

    @property
    def sock(self) -> socket.socket:
        """The socket; there is one as soon as the steps begin."""
        if self._sock is None:
            raise ScriptError("nobody has connected yet")
        return self._sock

    def say(self, data: bytes) -> None:
        """Send `data`. Blocks until the system has taken it."""
        self.sock.sendall(data)

    def read(self, most: int = PIECE) -> bytes:
        """Return what has come, `most` bytes at most; b"" at the end of the stream. Blocks."""
        if self._pending:
            piece = bytes(self._pending[:most])
            del self._pending[:most]
            return piece
        piece = self.sock.recv(most)
        self.received += piece
        return piece

    def unread(self, data: bytes) -> None:
        """Give back what was read too much; the next `read` returns it."""
        self._pending[:0] = data

    def _run(self) -> None:
        with contextlib.suppress(OSError), self._meet() as self._sock:
            self._play()  # keeps its error before the link closes: who sees that end may leave at once

    def _play(self) -> None:
        try:
            for step in self._steps:
                if not self.over.is_set():
                    step(self)
        except BaseException as error:
            if not self.over.is_set() and not _is_gone(error):
                self._error = error

    def _check(self) -> None:
        if self._thread.is_alive():
            raise TimeoutError(f"the script did not end within {faults.SECONDS:g} s")
        error, self._error = self._error, None
        if error is not None:
            raise error


def _is_gone(error: BaseException) -> bool:
    """Return whether an error says that the link has gone, and is none of a step of its own."""
    return isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno in _GONE)


_GONE = (errno.EBADF, errno.ENOTCONN, errno.ETIMEDOUT)  # the first two where a step has closed it

Step: TypeAlias = Callable[[Peer], object]
"""What a peer does next."""
