# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets that listen, for one connection: of TCP on one address or all, of Unix at a path that only its owner reaches.

Errors leave here as ChannelError with a word on what to do next.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import pathlib
import socket
import stat

from .. import errors
from . import link, sockets, uri

BACKLOG = 128
"""Connections that may wait for us: with fewer, a crowd has a sender's first packet dropped, and it waits a second."""

LISTEN_LOOKUP_SECONDS = 30.0
"""How long the name of an address to listen on may take to be found out."""


def listen(address: sockets.SocketAddress) -> socket.socket:
    """Return a non-blocking listening socket for one connection."""
    try:
        return _listen_unix(address.path) if isinstance(address, uri.UnixAddress) else _listen_tcp(address)
    except OSError as error:
        if error.errno == errno.ENOENT:
            error = OSError(error.errno, f"{error.strerror} (make the folder of the socket first)")
        raise errors.ChannelError("listening", uri=str(address), cause=sockets.explained(error)) from error


def _listen_tcp(address: uri.TcpAddress) -> socket.socket:
    if not address.host:
        with contextlib.suppress(OSError):
            return _bind(socket.AF_INET6, ("::", address.port), dual_stack=True)
        return _bind(socket.AF_INET, ("0.0.0.0", address.port))
    first: OSError | None = None
    with contextlib.closing(link.Link(str(address))) as connection:
        places = sockets.resolve(connection, address, passive=True, timeout=LISTEN_LOOKUP_SECONDS)
    for family, where in places:
        try:
            return _bind(family, where)
        except OSError as error:
            first = first or error
    raise first or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _bind(family: int, where: sockets.Where, *, dual_stack: bool = False) -> socket.socket:
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sockets.tune(sock)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual_stack:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if isinstance(where, str):
            _bind_private(sock, where)
            on_error.callback(_forget_file, where)
        else:
            sock.bind(where)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        on_error.pop_all()
        return sock


def stop_listening(sock: socket.socket, address: sockets.SocketAddress) -> None:
    """Close a socket that `listen` has just made, and remove its file."""
    sockets.shut_and_close(sock)
    if isinstance(address, uri.UnixAddress):
        _forget_file(address.path)


def _bind_private(sock: socket.socket, path: str) -> None:
    """Bind to a path that only its owner may connect to, whatever the umask is.

    Linux gives the file the mode of the socket, less the umask, which other threads may need as it is. Where a system
    does it otherwise the mode is set now: nobody gets in before listen().
    """
    os.fchmod(sock.fileno(), 0o600)
    sock.bind(path)
    try:
        if stat.S_IMODE(os.lstat(path).st_mode) & 0o077:
            pathlib.Path(path).chmod(0o600)
    except OSError:
        _forget_file(path)
        raise


def _forget_file(path: str) -> None:
    """Remove the file of a socket that nobody will listen at."""
    with contextlib.suppress(OSError):
        pathlib.Path(path).unlink()


def _listen_unix(path: str) -> socket.socket:
    try:
        return _bind(socket.AF_UNIX, path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or _somebody_listens(path):
            raise
    pathlib.Path(path).unlink(missing_ok=True)
    return _bind(socket.AF_UNIX, path)


def _somebody_listens(path: str) -> bool:
    """Return whether the socket at `path` is in use, rather than left behind by a receiver that died."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    # A datagram socket cannot connect to a stream socket, but is told whether there is one: the owner notices nothing.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def bound_address(sock: socket.socket, asked: sockets.SocketAddress) -> sockets.SocketAddress:
    """Return where `sock` listens: `asked` with the port that the system chose, if it had to."""
    if isinstance(asked, uri.UnixAddress):
        return asked
    return asked._replace(port=sock.getsockname()[1])


def is_exposed(sock: socket.socket) -> bool:
    """Return whether other machines may reach a listening socket."""
    if sock.family == socket.AF_UNIX:
        return False
    where = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])
    return not (getattr(where, "ipv4_mapped", None) or where).is_loopback
