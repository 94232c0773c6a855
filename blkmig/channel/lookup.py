# SPDX-License-Identifier: GPL-2.0-or-later
"""From the name of a host to its addresses, within a time: the resolver runs aside (`aside.py`)."""

from __future__ import annotations

import socket

from .. import aside, errors
from . import link, uri

Found = list[tuple[int, tuple[object, ...]]]


def addresses_of(connection: link.Link, address: uri.TcpAddress, *, passive: bool, timeout: float) -> Found:
    """Return family and socket address of each that the host of `address` has. Raises ChannelError and Cancelled."""
    try:
        return _ask(address, passive, numeric=True)
    except OSError:
        pass  # a name, or a bad number: the resolver says which
    except UnicodeError as error:
        raise _unknown(address, error) from error
    try:
        with aside.Aside(lambda: _look_up(address, passive), name="blkmig-lookup") as looking:
            if not connection.wait(timeout, looking.fd):
                why = aside.not_found_out(address.host, timeout)
                raise errors.ChannelTimeout(DOING, uri=connection.uri, cause=why)
            return looking.result()
    except OSError as error:
        raise errors.ChannelError(DOING, uri=connection.uri, cause=error) from error


DOING = "looking up the address"


def _look_up(address: uri.TcpAddress, passive: bool) -> Found:
    try:
        return _ask(address, passive, numeric=False)
    except Exception as error:
        raise _unknown(address, error) from error


def _ask(address: uri.TcpAddress, passive: bool, *, numeric: bool) -> Found:
    flags = (socket.AI_PASSIVE if passive else 0) | (socket.AI_NUMERICHOST if numeric else 0)
    # As bytes: for a text, even of ASCII, Python imports the whole of IDNA first, which takes 2 ms.
    host = address.host.encode() if address.host.isascii() else address.host
    found = socket.getaddrinfo(host or None, address.port, type=socket.SOCK_STREAM, flags=flags)
    return [(int(family), where) for family, _, _, _, where in found]


def _unknown(address: uri.TcpAddress, error: Exception) -> errors.ChannelError:
    why = f"the host {address.host!r} is not known: {getattr(error, 'strerror', None) or error}"
    return errors.ChannelError(DOING, uri=str(address), cause=why)
