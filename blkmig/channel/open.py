# SPDX-License-Identifier: GPL-2.0-or-later
"""From a URI to an open channel: connect for the sending side, listen and accept for the receiving side."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import time
from types import TracebackType
from typing import Self

from .. import errors
from . import accepting, link, listening, measured, qemufile, sockets, streams, uri


def connect(address: str, *, timeout: float) -> qemufile.OutputQEMUFile:
    """Open the sending side of the URI `address`; see :class:`Connector` for one that can be cancelled meanwhile."""
    return Connector(address).connect(timeout=timeout)


def listen(address: str) -> Listener:
    """Open the receiving side of the URI `address`: tcp: and unix: listen from now on, the others open in accept()."""
    parsed = uri.parse_uri(address)
    if not isinstance(parsed, uri.TcpAddress | uri.UnixAddress):
        return Listener(parsed, None)
    sock = listening.listen(parsed)
    try:
        return Listener(listening.bound_address(sock, parsed), sock)
    except (OSError, errors.ChannelError) as error:
        listening.stop_listening(sock, parsed)
        if isinstance(error, errors.ChannelError):
            raise
        raise errors.ChannelError("listening", uri=address, cause=error) from error


class Connector:
    """The sending side of an address, before the stream. Raises ParameterError for a bad URI."""

    def __init__(self, address: str) -> None:
        self._address = uri.parse_uri(address)
        if isinstance(self._address, uri.TcpAddress) and self._address.port == 0:
            raise errors.ParameterError(f"bad address {address!r}: say the port that the receiver listens on")
        self.uri = str(self._address)
        self._link = link.Link(self.uri)

    @property
    def goes_both_ways(self) -> bool:
        """Whether the other end can answer, as far as the address tells."""
        match self._address:
            case uri.FdAddress(fd=fd):
                return streams.is_socket(fd)
            case uri.StdioAddress():
                return streams.is_socket(1)
            case uri.ExecAddress():
                return self._address.is_answered(writing=True)
        return isinstance(self._address, uri.TcpAddress | uri.UnixAddress)

    def connect(self, *, timeout: float, opened: int | None = None) -> qemufile.OutputQEMUFile:
        """Open the stream; call it once.

        tcp:, unix: and a named pipe need somebody at the other end within `timeout` seconds, else
        :class:`~blkmig.errors.ChannelTimeout`; the others open at once. exec: starts the command; file: creates the
        file, or cuts it at the offset, unless somebody has opened it already: what is written then is `opened`, which
        stays the caller's. Raises Cancelled, and ChannelError for everything else.
        """
        self._link.check()
        if isinstance(self._address, uri.TcpAddress | uri.UnixAddress):
            sock = sockets.connect(self._link, self._address, timeout=timeout)
            return qemufile.OutputQEMUFile(link.Transport(self._link, sock))
        transport = streams.open_stream(self._link, self._address, writing=True, timeout=timeout, opened=opened)
        return qemufile.OutputQEMUFile(transport)

    def cancel(self) -> None:
        """Make connect(), and every call of the stream that came out of it, raise Cancelled.

        From any thread or a signal handler, at any time.
        """
        self._link.cancel()

    def close(self) -> None:
        """Give back what connect() needed, once its stream, if it made one, is closed; twice does no harm."""
        self._link.close()


class Listener:
    """The receiving side of an address, before the stream. `uri` is where to connect to, its port never 0."""

    def __init__(self, address: uri.Address, sock: socket.socket | None) -> None:
        self.uri = str(address)
        self._address = address
        self._socket = sock
        self._link = link.Link(self.uri)
        self._is_closed = False
        self._socket_file = os.lstat(address.path) if isinstance(address, uri.UnixAddress) else None
        self._measurements = None if sock is None else measured.Measurements(sock)

    def accept(self, *, timeout: float | None, magic: bytes = b"", nbytes: int = 0) -> qemufile.InputQEMUFile:
        """Wait for the source and return its stream; None waits as long as it takes.

        With `magic`, the first connection is taken that has sent `nbytes` bytes which begin with `magic`; the others
        are closed (see `accepting`). These bytes stay the first of the stream.
        Raises ChannelTimeout after `timeout` seconds, Cancelled, and ChannelError. May be called again.
        """
        if self._is_closed:
            raise errors.StateError(f"nobody listens any more [{self.uri}]", state="closed", required="listening")
        self._link.check()
        if isinstance(self._address, uri.TcpAddress | uri.UnixAddress):
            return self._accept_socket(timeout, magic, nbytes)
        connection = link.Link(self.uri)
        try:
            return qemufile.InputQEMUFile(streams.open_stream(connection, self._address, writing=False))
        except BaseException:
            connection.close()
            raise

    def _accept_socket(self, timeout: float | None, magic: bytes, nbytes: int) -> qemufile.InputQEMUFile:
        assert self._socket is not None
        assert self._measurements is not None
        begun = b""
        if magic:
            reception = accepting.Reception(
                self._link, self._socket, self._measurements, magic=magic, nbytes=nbytes
            )
            first = reception.first(timeout)
            sock, begun = first.socket, first.begun
        else:
            sock = self._accepted(timeout)
        try:
            sock.setblocking(False)  # or splice() would wait, and not hear of a cancel
            sockets.tune_accepted(sock)
            transport = link.Transport(link.Link(sockets.peer_uri(sock, self.uri)), sock)
            return qemufile.InputQEMUFile(transport, begun=begun)
        except (OSError, errors.ChannelError) as error:
            sockets.shut_and_close(sock)
            if isinstance(error, errors.ChannelError):
                raise
            raise errors.ChannelError("accepting a connection", uri=self.uri, cause=error) from error

    def _accepted(self, timeout: float | None) -> socket.socket:
        assert self._socket is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._link.wait(None if deadline is None else deadline - time.monotonic(), self._socket.fileno()):
            try:
                return self._socket.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                raise errors.ChannelError("accepting a connection", uri=self.uri, cause=error) from error
        raise errors.ChannelTimeout(
            "waiting for the source", uri=self.uri, cause=f"nobody connected within {timeout:g} s"
        )

    def cancel(self) -> None:
        """Make a waiting accept(), and every later one, raise Cancelled; from any thread or a signal handler.

        Streams that were accepted before are not touched.
        """
        self._link.cancel()

    def close(self) -> None:
        """Stop listening and remove our socket file; twice does no harm. Accepted streams stay open."""
        self._is_closed = True
        self._link.close()
        if self._socket is None:
            return
        if self._measurements is not None:
            self._measurements.close()
        sockets.shut_and_close(self._socket)
        self._socket = None
        if isinstance(self._address, uri.UnixAddress) and self._socket_file is not None:
            # Only if it is still ours: another receiver may have put its own there.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(self._address.path), self._socket_file):
                    pathlib.Path(self._address.path).unlink()

    def __enter__(self) -> Self:
        """Return the listener itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop listening."""
        self.close()
