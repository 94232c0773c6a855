# SPDX-License-Identifier: GPL-2.0-or-later
"""From a URI to an open channel, the sending side: it connects. The other one is in `listener`."""

from __future__ import annotations

import copy
import socket
import time
from typing import TYPE_CHECKING

from .. import errors
from . import link, qemufile, sockets, streams, uri

if TYPE_CHECKING:
    from .. import credentials
    from . import tls


def connect(
    address: str, *, timeout: float, tls: credentials.TlsParameters | None = None
) -> qemufile.OutputQEMUFile:
    """Open the sending side of the URI `address`; see :class:`Connector` for one that can be cancelled meanwhile."""
    return Connector(address, tls=tls).connect(timeout=timeout)


class Connector:
    """The sending side of an address, before the stream. `tls` is for tls:, and must be said there.

    Raises ParameterError for a bad URI, and for certificates that cannot be used.
    """

    def __init__(self, address: str, *, tls: credentials.TlsParameters | None = None) -> None:
        self._address = uri.parse_uri(address)
        uri.check_tls(self._address, tls)
        self._trust = _sender_trust(tls, self._address) if isinstance(self._address, uri.TlsAddress) else None
        if isinstance(self._address, uri.TcpAddress) and self._address.port == 0:
            raise errors.ParameterError(f"bad address {address!r}: say the port that the receiver listens on")
        self.uri = str(self._address)
        self._link = link.Link(self.uri)

    def another(self) -> Connector:
        """Return another way to the same other end, that nobody has cancelled; it trusts whom this one does.

        No file is read for that: certificates that have gone meanwhile end no migration.
        """
        made = copy.copy(self)
        made._link = link.Link(self.uri)
        return made

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

    @property
    def takes_several(self) -> bool:
        """Whether more than one connection leads to the same receiver: a command would start another one."""
        return isinstance(self._address, uri.TcpAddress | uri.UnixAddress)

    def wait(self, seconds: float) -> None:
        """Wait; raises Cancelled at once."""
        self._link.wait(seconds)

    def connect(self, *, timeout: float, opened: int | None = None) -> qemufile.OutputQEMUFile:
        """Open the stream; call it once.

        tcp:, unix: and a named pipe need somebody at the other end within `timeout` seconds, else
        :class:`~blkmig.errors.ChannelTimeout`; the others open at once. exec: starts the command; file: creates the
        file, or cuts it at the offset, unless somebody has opened it already: what is written then is `opened`, which
        stays the caller's. Raises Cancelled, and ChannelError for everything else.
        """
        self._link.check()
        if isinstance(self._address, uri.TcpAddress | uri.UnixAddress):
            deadline = time.monotonic() + timeout
            sock = sockets.connect(self._link, self._address, timeout=timeout)
            return qemufile.OutputQEMUFile(self._transport(sock, deadline))
        transport = streams.open_stream(self._link, self._address, writing=True, timeout=timeout, opened=opened)
        return qemufile.OutputQEMUFile(transport)

    def _transport(self, sock: socket.socket, deadline: float) -> link.Transport:
        if self._trust is None:
            return link.Transport(self._link, sock)
        from . import secured

        return secured.connect(self._link, sock, self._trust, deadline=deadline)

    def cancel(self) -> None:
        """Make connect(), and every call of the stream that came out of it, raise Cancelled.

        From any thread or a signal handler, at any time.
        """
        self._link.cancel()

    def close(self) -> None:
        """Give back what connect() needed, once its stream, if it made one, is closed; twice does no harm."""
        self._link.close()


def _sender_trust(parameters: credentials.TlsParameters | None, address: uri.TlsAddress) -> tls.Trust:
    from . import tls  # only now, because a plain stream needs nothing of it

    assert parameters is not None
    return tls.sender_trust(parameters, address.host)
