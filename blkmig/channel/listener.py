# SPDX-License-Identifier: GPL-2.0-or-later
"""From a URI to an open channel, the receiving side: it listens and accepts."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .. import errors, networks
from . import accepting, arrivals, candidates, link, listening, measured, qemufile, refusals, sockets, streams, uri

if TYPE_CHECKING:
    from .. import credentials
    from . import tls


def listen(
    address: str, *, tls: credentials.TlsParameters | None = None, allow: Sequence[str] = (), secret: bytes = b""
) -> Listener:
    """Open the receiving side of the URI `address`: sockets listen from now on, the others open in accept().

    `tls` is for tls:; without it the listener makes a token there, the same as an earlier one if it has the `secret` of
    that. With `allow`, which is for tcp: and tls:, only who comes from one of these networks is served. Raises
    ParameterError and ChannelError.
    """
    parsed = uri.parse_uri(address)
    if not isinstance(parsed, uri.TlsAddress):
        uri.check_tls(parsed, tls)
    allowed = networks.parse(allow)
    if allowed and not isinstance(parsed, uri.TcpAddress):
        raise errors.ParameterError(f"{parsed} is not reached by a network: --allow is for tcp: and tls:")
    security = _receiver_security(tls, secret) if isinstance(parsed, uri.TlsAddress) else None
    if not isinstance(parsed, uri.TcpAddress | uri.UnixAddress):
        return Listener(parsed, None)
    sock = listening.listen(parsed)
    try:
        return Listener(listening.bound_address(sock, parsed), sock, security, allowed)
    except (OSError, errors.ChannelError) as error:
        listening.stop_listening(sock, parsed)
        if isinstance(error, errors.ChannelError):
            raise
        raise errors.ChannelError("listening", uri=address, cause=error) from error


class Listener:
    """The receiving side of an address, before the stream. `uri` is where to connect to, its port never 0."""

    def __init__(
        self,
        address: uri.Address,
        sock: socket.socket | None,
        security: tls.Security | None = None,
        allow: Sequence[networks.Network] = (),
    ) -> None:
        self.uri = str(address)
        self._address = address
        self._socket = sock
        self._link = link.Link(self.uri)
        self._is_closed = False
        self._socket_file = os.lstat(address.path) if isinstance(address, uri.UnixAddress) else None
        self._security, self._allow = security, allow
        self._failed = refusals.Refusals()
        self._reception: accepting.Reception | None = None  # whose candidates may be taken by the next accept()
        self.is_exposed = not (sock is None or security or allow) and listening.is_exposed(sock)
        """Whether any other machine may reach it, so that whoever does can send to it."""

        self._measurements = None if sock is None else measured.Measurements(sock if security is None else None)

    @property
    def token(self) -> str:
        """Return what makes a sender trusted, "" where certificates do, or nothing must."""
        return "" if self._security is None else self._security.token

    @property
    def takes_several(self) -> bool:
        """Return whether a source can come again, while nobody has closed this."""
        return self._socket is not None

    @property
    def secret(self) -> bytes:
        """Return what the token was made of, b"" if there is none: a later listener takes the same token with it."""
        return b"" if self._security is None else self._security.secret

    def keep_token(self) -> None:
        """Take the token for as long as this listens: a session that began with it comes again with it."""
        if self._security is not None:
            self._security = dataclasses.replace(self._security, expires_at=math.inf)

    @property
    def notes(self) -> list[str]:
        """Return what is to be said of those who have connected and were refused, if there were any."""
        return self._failed.notes

    def accept(
        self,
        *,
        timeout: float | None,
        magics: Sequence[bytes] = (),
        nbytes: int = 0,
        short: tuple[bytes, int] | None = None,
        keep: bool = False,
    ) -> qemufile.InputQEMUFile:
        """Wait for the source and return its stream; None waits as long as it takes.

        With `magics`, the first connection is taken that has sent `nbytes` bytes which begin with one of them (see
        `accepting`), or, of one that begins as `short` says, as many as that says. These bytes stay the first of the
        stream. The others are closed, unless `keep` says that they may be taken by the next call, with the same list.
        Raises ChannelTimeout after `timeout` seconds, Cancelled, and ChannelError. May be called again.
        """
        if self._is_closed:
            raise errors.StateError(f"nobody listens any more [{self.uri}]", state="closed", required="listening")
        self._link.check()
        if isinstance(self._address, uri.TcpAddress | uri.UnixAddress):
            return self._accept_socket(timeout, magics, nbytes, short, keep)
        connection = link.Link(self.uri)
        try:
            return qemufile.InputQEMUFile(streams.open_stream(connection, self._address, writing=False))
        except BaseException:
            connection.close()
            raise

    def _accept_socket(
        self, timeout: float | None, magics: Sequence[bytes], nbytes: int, short: tuple[bytes, int] | None, keep: bool
    ) -> qemufile.InputQEMUFile:
        assert self._socket is not None
        assert self._measurements is not None
        if magics or self._security is not None:
            first = self._first(timeout, magics, nbytes, short, keep)
        else:
            first = self._candidate(self._accepted(timeout))
        try:
            first.socket.setblocking(False)  # or splice() would wait, and not hear of a cancel
            sockets.tune_accepted(first.socket)
            transport = first.transport(link.Link(first.name))
            return qemufile.InputQEMUFile(transport, begun=first.begun)
        except (OSError, errors.ChannelError) as error:
            sockets.shut_and_close(first.socket)
            if isinstance(error, errors.ChannelError):
                raise
            raise errors.ChannelError("accepting a connection", uri=self.uri, cause=error) from error

    def _first(
        self, timeout: float | None, magics: Sequence[bytes], nbytes: int, short: tuple[bytes, int] | None, keep: bool
    ) -> candidates.Candidate:
        assert self._socket is not None
        assert self._measurements is not None
        if self._reception is None or self._reception.magics is not magics:
            self._close_reception()
            self._reception = accepting.Reception(
                *(self._link, self._socket, self._measurements, self._failed),
                make=self._candidate,
                magics=magics,
                nbytes=nbytes,
                short=short,
            )
        try:
            return self._reception.first(timeout)
        finally:
            if not keep:
                self._close_reception()

    def _close_reception(self) -> None:
        if self._reception is not None:
            self._reception.close()
            self._reception = None

    def _candidate(self, sock: socket.socket) -> candidates.Candidate:
        return arrivals.candidate_of(sock, self.uri, self._security, self._allow)

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
        self._close_reception()
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


def _receiver_security(parameters: credentials.TlsParameters | None, secret: bytes) -> tls.Security:
    from . import tls

    return tls.offered_security(secret) if parameters is None else tls.receiver_security(parameters)
