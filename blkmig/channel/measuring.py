# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a link carries bytes, measured with a receiver that waits for its migration and goes on waiting.

::

    who measures                                  a receiver that waits
    b"blkmig?" version, nonce  ── one datagram ─►
                               ◄─ one datagram ── b"blkmig!" version, nonce
    HEADER                     ── connection ───► no migration: it counts what comes, and goes on listening
    bytes, for `SECONDS`       ─────────────────►
                               ◄───────────────── how many have come, as u64, again and again
    a reset                    ─────────────────►

The question comes first because a connection alone does harm: a QEMU with -incoming takes the first one for its
migration, whatever it says, and ends with it. Neither a QEMU nor an older blkmig listens for datagrams, so neither of
them sees anything of a question, and whoever does not answer is not connected to. Over TCP the question is a datagram
of UDP to the same address and port. At a Unix socket it goes to an abstract name made of the socket file's device and
inode, and the answer counts only if it comes from the user who owns that file.

Bounds: at either end by time and bytes; a receiver counts one connection at a time (`measured.py`). What answers may
be anything: a count that cannot be ends the measuring, and of many reports few are kept.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from .. import errors, units
from . import link, sockets, uri

HEADER = b"BLKM\0\0\0\1"
"""What a measuring connection says first: as many bytes as the header of a stream, and none of them like it."""

ASK, ANSWER = b"blkmig?\1", b"blkmig!\1"
NONCE_NBYTES = 16

ASK_AGAIN_SECONDS = (0.2, 0.3, 0.5)
"""How long each question waits for its answer: datagrams get lost."""

ENDED = "the receiver ended the measuring: somebody else measures, a migration came in, or it ended itself"

SECONDS = 1.5
MAX_NBYTES = 512 * units.MiB
WARM_UP = 1 / 3
"""The part of the time at the beginning that tells nothing: TCP finds its speed, and buffers fill."""

LEAST_PART = 1 / 3
"""The part of the time that reports must span to tell a speed: what comes together at the end tells none."""

PIECE_NBYTES = units.MiB

KEEP_SECONDS = 0.001
"""Of the reports that come within so long, the first and the newest are kept: a flood of them takes no memory."""

REPORT = struct.Struct(">Q")
_CREDENTIALS = struct.Struct("3i")


class LinkSpeed(NamedTuple):
    """What was measured: bytes per second, and the seconds after which a receiver has what was sent just now."""

    bandwidth: float
    delay: float


class NotMeasured(Exception):
    """The link was not measured; the text says why."""


def measure(address: str, *, timeout: float) -> LinkSpeed:
    """Return how fast the link to the receiver at `address` is. Blocks for `SECONDS`, and `timeout` to connect.

    Raises :class:`NotMeasured` where nobody answers that can be measured without harm.
    """
    parsed = uri.parse_uri(address)
    if isinstance(parsed, uri.TlsAddress) or not isinstance(parsed, uri.TcpAddress | uri.UnixAddress):
        raise NotMeasured(f"what {address} leads to cannot be measured beforehand")
    with contextlib.closing(link.Link(str(parsed))) as connection:
        try:
            family, where = _find(connection, parsed, timeout)
            with sockets.connect_one(connection, family, where, timeout) as sock:
                try:
                    return _measure(connection, sock)
                except ConnectionError as error:  # it closed the connection before it had read all
                    raise NotMeasured(ENDED) from error
        except errors.ChannelError as error:
            raise NotMeasured(str(error)) from error
        except OSError as error:
            raise NotMeasured(f"{error.strerror or error} [{parsed}]") from error


def _find(connection: link.Link, address: sockets.SocketAddress, timeout: float) -> tuple[int, sockets.Where]:
    """Return the first place of the address where a receiver answers."""
    with contextlib.ExitStack() as stack:
        asking = []
        for family, where in sockets.resolve(connection, address, passive=False, timeout=timeout):
            with contextlib.suppress(OSError):
                asking.append((family, where, stack.enter_context(Asking(family, where))))
        for seconds in ASK_AGAIN_SECONDS:
            asking = [each for each in asking if each[2].ask()]
            deadline = time.monotonic() + seconds
            while asking and (left := deadline - time.monotonic()) > 0:
                ready = connection.wait_any(left, [each[2].socket.fileno() for each in asking])
                for family, where, each in asking:
                    if each.socket.fileno() in ready and each.is_answered():
                        return family, where
                asking = [each for each in asking if not each[2].is_refused]
    raise NotMeasured(f"no receiver that can be measured answers at {address}")


class Asking:
    """The question whether a receiver waits at an address. Raises OSError where nobody can be asked."""

    def __init__(self, family: int, where: sockets.Where) -> None:
        self.is_refused = False
        self._nonce = os.urandom(NONCE_NBYTES)
        self._owner: int | None = None
        to = where
        if isinstance(where, str):
            self._owner = pathlib.Path(where).stat().st_uid
            to = beacon_name(where)
        with contextlib.ExitStack() as on_error:
            self.socket = on_error.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            self.socket.setblocking(False)
            if family == socket.AF_UNIX:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self.socket.bind("")  # a name of its own, for the answer
            self.socket.connect(to)
            on_error.pop_all()

    def __enter__(self) -> Asking:
        """Return the question itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Wait for no answer any more."""
        self.socket.close()

    def ask(self) -> bool:
        """Send the question; False if nobody is there."""
        try:
            self.socket.send(ASK + self._nonce)
        except BlockingIOError:
            pass
        except OSError:
            self.is_refused = True
        return not self.is_refused

    def is_answered(self) -> bool:
        """Look at what has come."""
        try:
            said, ancillary, _, _ = self.socket.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
        except BlockingIOError:
            return False
        except OSError:  # an ICMP message: nobody has that port
            self.is_refused = True
            return False
        return said == ANSWER + self._nonce and (self._owner is None or self._owner in senders(ancillary))


def senders(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return who has sent a datagram, as the kernel says it."""
    return [
        _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[1]
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size
    ]


def beacon_name(path: str) -> str:
    """Return the abstract name at which a receiver with the socket file `path` is asked. Raises OSError."""
    about = pathlib.Path(path).stat()
    return f"\0blkmig/measuring/{about.st_dev:x}/{about.st_ino:x}"


def _measure(connection: link.Link, sock: socket.socket) -> LinkSpeed:
    """Send for `SECONDS`, and look at what the receiver says of it."""
    payload = memoryview(HEADER + os.urandom(PIECE_NBYTES))
    reports = Reports()
    position = sent = 0
    started = now = time.monotonic()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, link.RESET_ON_CLOSE)
    while now < started + SECONDS and not (sent >= MAX_NBYTES and reports.came >= sent):
        events = select.POLLIN | (select.POLLOUT if sent < MAX_NBYTES else 0)
        connection.wait_any(started + SECONDS - now, [sock.fileno()], events)
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            got = sock.recv(4096)
            if not got:
                raise NotMeasured(ENDED)
            reports.take(now, got, sent)
        if sent < MAX_NBYTES:
            with contextlib.suppress(BlockingIOError):
                nbytes = sock.send(payload[position:])
                sent += nbytes
                position = position + nbytes if position + nbytes < len(payload) else len(HEADER)
    return speed_of(started, sent, reports.kept)


class Reports:
    """What a receiver says of the bytes that have come. `kept` is (when, bytes), at most one in `KEEP_SECONDS`."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, int]] = []
        self.came = 0
        self._rest = b""

    def take(self, now: float, said: bytes, sent: int) -> None:
        """Take what was said at `now`, when `sent` bytes had been given to the link. Raises :class:`NotMeasured`."""
        said = self._rest + said
        whole = len(said) // REPORT.size * REPORT.size
        self._rest = said[whole:]
        for (count,) in REPORT.iter_unpack(said[:whole]):
            if not self.came <= count <= sent:
                why = f"{count} bytes of the {sent} that were sent, {self.came} before"
                raise NotMeasured(f"what answers there counts what cannot be ({why}): it is no receiver, or is faulty")
            self.came = count
        if whole:
            if len(self.kept) > 1 and now - self.kept[-2][0] < KEEP_SECONDS:
                self.kept.pop()
            self.kept.append((now, self.came))


def speed_of(started: float, sent: int, reports: Sequence[tuple[float, int]]) -> LinkSpeed:
    """Return what reports of (when, bytes that have come) say of a link to which `sent` bytes were given by then."""
    if len(reports) < 3:
        raise NotMeasured("the receiver took too little in the time of measuring")
    last, came = reports[-1]
    since, first = next(each for each in reports if each[0] >= started + (last - started) * WARM_UP)
    if last - since < (last - started) * LEAST_PART or came <= first:
        since, first = started, 0  # what is known of that part is too little: the whole time tells
    bandwidth = (came - first) / (last - since) if last > since else 0.0
    if not bandwidth:
        raise NotMeasured("the receiver took too little in the time of measuring")
    return LinkSpeed(bandwidth, max(sent - came, 0) / bandwidth)
