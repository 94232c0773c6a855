# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP and Unix sockets: connecting within a time, and the options that a stream of blocks wants.

Errors leave here as ChannelError with a word on what to do next.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time

from .. import errors, units
from . import link, lookup, uri

UNIX_BUFFER = 2 * units.MiB
"""The default of 208 KiB halves the throughput of a Unix socket: 1.3 against 2.9 GB/s."""

LOCAL_BUFFER = 5 * units.MiB // 4
"""Bytes that may wait in a receiver's TCP socket within one machine: a block and more. See `tune_accepted`.

The more room there is, the longer a sender that fell behind takes to fill it and to be ahead again. 2 GiB took 249 ms
with 2 MiB, and 232 ms with 1.25 MiB (the middle half of 40 runs: 236 to 275, and 226 to 262).
"""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 60, 10, 6
"""A peer whose machine has vanished is noticed within two minutes, in seconds and probes."""

USER_TIMEOUT = 120.0
"""Seconds after which TCP gives up a peer that does not acknowledge data on its way to it. Keepalive says nothing then,
and TCP by itself takes a quarter of an hour. The kernel also counts a peer that takes nothing, so this is never less
than the idle time-out, whose error has better words."""

SHORT_QUEUE = units.MiB // 2
"""Bytes that a TCP socket takes ahead of what it sends, where that is to be little. At 1 Gbit/s they are 4 ms, as long
as it takes to fetch what a QEMU's guest has written. See `limit_queue`."""

LONGER_QUEUE = units.MiB
"""The same, where whoever puts something waits until it is in the socket, and no longer. It takes then what a round has
that is worth a pause of milliseconds; of more, the pause is as long as was forecast, but for these milliseconds."""

MIN_RTT, MIN_RTT_OFFSET = struct.Struct("=I"), 148
"""Where Linux, from 4.9 on, has the shortest round trip in its ``tcp_info``, in microseconds."""

UNIX_RETRY_SECONDS = 0.01
"""A Unix socket with a full backlog cannot be waited for, only asked again."""

SocketAddress = uri.TcpAddress | uri.UnixAddress
Where = str | tuple[object, ...]
"""An address as bind() and connect() take it."""

_HINTS = {
    errno.ECONNREFUSED: "nobody listens there: start the receiving side first",
    errno.ENOENT: "there is no such socket: start the receiving side first",
    errno.EADDRINUSE: "another program listens there already",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
    errno.ENOTSOCK: "there is a file of that name which is not a socket",
    errno.EHOSTUNREACH: "check the address and the firewall",
    errno.ENETUNREACH: "check the address and the routes",
}


def explained(error: OSError) -> OSError:
    """Return `error` with what to do about it added to its text, its errno kept."""
    hint = _HINTS.get(error.errno or 0)
    has_one = hint is None or "(" in (error.strerror or "")
    return error if has_one else OSError(error.errno, f"{error.strerror} ({hint})")


def tune(sock: socket.socket) -> None:
    """Set what a migration wants of a connected or listening socket, as far as the system lets it."""
    if sock.family == socket.AF_UNIX:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, UNIX_BUFFER)
    elif sock.family in (socket.AF_INET, socket.AF_INET6):
        # A payload leaves together with its header, so there is nothing to gather: the last small records and the
        # answers of the return path must not wait for an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
        set_user_timeout(sock, KEEPALIVE_IDLE)


def set_user_timeout(sock: socket.socket, idle_timeout: float) -> None:
    """Let TCP give up a link on which nothing is acknowledged, later than we do: 0 leaves it to the system."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        seconds = max(USER_TIMEOUT, idle_timeout + KEEPALIVE_IDLE) if idle_timeout else 0.0
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def limit_queue(sock: socket.socket, nbytes: int) -> None:
    """Let a TCP socket take little more than what it can send, from now on; the kernel lets megabytes wait there.

    What waits there when the writers are held is a part of their pause: at 1 Gbit/s, 20 ms and more.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, nbytes)


def round_trip(sock: socket.socket) -> float | None:
    """Return the shortest round trip that TCP has seen, in seconds; None if nobody knows.

    Not the smoothed one: an answer that waits for company, up to 40 ms, is in that.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, struct.error):
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, MIN_RTT_OFFSET + MIN_RTT.size)
            return float(MIN_RTT.unpack_from(info, MIN_RTT_OFFSET)[0]) / 1e6
    return None


def shut_and_close(sock: socket.socket) -> None:
    """Close a socket for all who share it: a copy in a forked child would keep the other side waiting. Never raises."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        sock.close()


def tune_accepted(sock: socket.socket) -> None:
    """Tune an accepted socket; if it is TCP from this machine, let less wait in it than the kernel would.

    While this socket is full, the sender adds to its own queue, and each block that is taken here lets another whole
    block leave in one burst. While this socket has room, each 64 KiB leaves by itself and is acknowledged by itself,
    which takes the sender three times the CPU time. The kernel lets megabytes wait here by and by. Then there is nearly
    always room, and a sender that once fell behind never fills the socket again.
    """
    tune(sock)
    with contextlib.suppress(OSError):  # no descriptor left to find that out with
        if sock.family != socket.AF_UNIX and link.is_local(sock) and can_have_buffer(sock.family, LOCAL_BUFFER):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOCAL_BUFFER)


def can_have_buffer(family: int, nbytes: int) -> bool:
    """Return whether the system lets a socket have `nbytes`; asking for more than that would leave it with less."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, nbytes)
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 2 * nbytes  # Linux counts its own needs, too


def tune_local(sock: socket.socket, where: Where) -> None:
    """Take a congestion control that does not pace, for a connection to `where` if that is within this machine.

    There is nothing to be fair to, and pacing costs more than the copying: with BBR, which many systems have as their
    default, the sender of 2 GiB takes 0.26 s of CPU time, with Reno, which every Linux has, 0.09. Call it before
    connecting: a socket that has begun with BBR is paced to its end, whatever is set later.
    """
    with contextlib.suppress(OSError), socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
        probe.connect(where)  # which sends nothing, but finds the way
        if link.is_local(probe):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


# -- connecting ------------------------------------------------------------------------------------------------------


def connect(connection: link.Link, address: SocketAddress, *, timeout: float) -> socket.socket:
    """Return a connected socket; the name is looked up and all its addresses tried within `timeout` seconds.

    Raises ChannelTimeout, Cancelled, and ChannelError.
    """
    deadline = time.monotonic() + timeout
    tries = resolve(connection, address, passive=False, timeout=timeout)
    failures: list[tuple[str, OSError]] = []
    for done, (family, where) in enumerate(tries):
        # What is left is shared, so that one address that never answers does not keep the others from being tried.
        share = (deadline - time.monotonic()) / (len(tries) - done)
        try:
            return connect_one(connection, family, where, max(share, 0.001))
        except OSError as error:
            failures.append((_host_of(where), error))
    raise _connect_error(address, failures, timeout)


def resolve(
    connection: link.Link, address: SocketAddress, *, passive: bool, timeout: float
) -> list[tuple[int, Where]]:
    """Return family and place of each that an address leads to. Raises ChannelError and Cancelled."""
    if isinstance(address, uri.UnixAddress):
        return [(socket.AF_UNIX, address.path)]
    found = lookup.addresses_of(connection, address, passive=passive, timeout=timeout)
    return [(family, where) for family, where in found]


def _host_of(where: Where) -> str:
    return where if isinstance(where, str) else str(where[0])


def connect_one(connection: link.Link, family: int, where: Where, timeout: float) -> socket.socket:
    """Return a socket that is connected to one place, and does not block. Raises OSError and Cancelled."""
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
        tune(sock)
        if family != socket.AF_UNIX:
            tune_local(sock, where)
        sock.setblocking(False)
        while (code := sock.connect_ex(where)) == errno.EAGAIN and time.monotonic() < deadline:
            connection.wait(UNIX_RETRY_SECONDS)
        if code == errno.EINPROGRESS:
            answered = connection.wait(deadline - time.monotonic(), sock.fileno(), select.POLLOUT)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if answered else errno.ETIMEDOUT
        if code:
            code = errno.ETIMEDOUT if code == errno.EAGAIN else code
            raise OSError(code, os.strerror(code))
        on_error.pop_all()
        return sock


def _connect_error(
    address: SocketAddress, failures: list[tuple[str, OSError]], timeout: float
) -> errors.ChannelError:
    error = failures[-1][1]
    if all(isinstance(failure, TimeoutError) for _, failure in failures):
        why = f"no answer within {timeout:g} s (check the address, the firewall, and that the receiver accepts)"
        timed_out = errors.ChannelTimeout("connecting", uri=str(address), cause=why)
        timed_out.__cause__ = error
        return timed_out
    cause = explained(error)
    if len({failure.errno for _, failure in failures}) > 1:
        cause = OSError(error.errno, "; ".join(f"{where}: {explained(e).strerror or e}" for where, e in failures))
    refused = errors.ChannelError("connecting", uri=str(address), cause=cause)
    refused.__cause__ = error
    return refused


def peer_uri(sock: socket.socket, listening: str, *, kind: type[uri.TcpAddress] = uri.TcpAddress) -> str:
    """Return who is at the other end of an accepted `sock`."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return listening
    try:
        host, port = sock.getpeername()[:2]
    except OSError:  # gone by now, which reading will tell
        return listening
    return str(kind(normalised(host), port))


def normalised(host: str) -> str:
    """Return a peer's address, an IPv4 address as such also where an IPv6 socket has accepted it."""
    return host.removeprefix("::ffff:")

