# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver does for those who measure its link, while it waits for its migration: the other end of `measuring`.

It answers questions, and counts the bytes of one connection at a time, within bounds of time and bytes. It never
blocks, and has no thread of its own.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Sequence

from .. import forks
from . import measuring, sockets

REPORT_SECONDS = 0.01
"""So often it is said how many bytes have come, and whenever all that was there is read."""

COUNTING_SECONDS = 10.0
COUNTING_NBYTES = 4 * measuring.MAX_NBYTES
"""What is taken of one connection, for a sender with other ideas."""

IP_PKTINFO = 8
"""Linux's number, which Python's `socket` does not have before 3.14."""

_IN_PKTINFO = struct.Struct("=I4s4s")
"""Interface, the local address to answer from, the address in the packet."""

_IN6_PKTINFO = struct.Struct("=16sI")
"""The address, and the interface."""

Ancillary = Sequence[tuple[int, int, bytes]]


class Measurements:
    """What a receiver does for those who measure, while it waits at `listening` for its migration.

    Who asks before it waits has his answer then. It belongs to the thread that waits, and never blocks. Where the
    question cannot be heard (no descriptor, the port is another one's), nobody measures; nor where there is no
    `listening`, because strangers are to learn nothing.
    """

    def __init__(self, listening: socket.socket | None) -> None:
        self._asked = None if listening is None else _open_beacon(listening)
        if self._asked is not None:
            forks.leave_to_parent(self, self._asked.fileno())
        self._counted: Counted | None = None
        self._room = bytearray(0)

    def fds(self) -> list[int]:
        """Return what is waited for."""
        return [sock.fileno() for sock in self._sockets()]

    def moments(self) -> list[float]:
        """Return when `hear` has something to do although nothing came."""
        return [] if self._counted is None else [self._counted.deadline]

    def take(self, sock: socket.socket) -> None:
        """Count what comes from a connection that has said `measuring.HEADER`; one at a time."""
        if self._counted is not None:
            sockets.shut_and_close(sock)
            return
        with contextlib.suppress(OSError):
            sockets.tune_accepted(sock)
        self._counted = Counted(sock)
        self._room = self._room or bytearray(measuring.PIECE_NBYTES)

    def hear(self, ready: set[int]) -> None:
        """Answer questions and count bytes, of what is ready."""
        if self._asked is not None and self._asked.fileno() in ready:
            answer(self._asked)
        counted = self._counted
        if counted is None:
            return
        is_over = time.monotonic() >= counted.deadline
        if is_over or (counted.socket.fileno() in ready and not counted.read(self._room)):
            self.stop_counting()

    def stop_counting(self) -> None:
        """Count no more: who measures is told by the end of the connection."""
        if self._counted is not None:
            sockets.shut_and_close(self._counted.socket)
            self._counted = None

    def close(self) -> None:
        """Hear no question any more. Twice does no harm."""
        self.stop_counting()
        if self._asked is not None:
            sockets.shut_and_close(self._asked)
            self._asked = None

    def _sockets(self) -> list[socket.socket]:
        found = [] if self._asked is None else [self._asked]
        return found if self._counted is None else [*found, self._counted.socket]


class Counted:
    """A connection whose bytes are counted, until `deadline`."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        forks.leave_to_parent(self, sock.fileno())
        self.deadline = time.monotonic() + COUNTING_SECONDS
        self._came = 0
        self._told_at = 0.0

    def read(self, room: bytearray) -> bool:
        """Take what has come, and say how much that is by now; False at the end of the connection."""
        try:
            nbytes = self.socket.recv_into(room)
            self._came += nbytes
            now = time.monotonic()
            if nbytes < len(room) or now - self._told_at >= REPORT_SECONDS:
                self._told_at = now
                self.socket.send(measuring.REPORT.pack(self._came))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return bool(nbytes) and self._came < COUNTING_NBYTES


def _open_beacon(listening: socket.socket) -> socket.socket | None:
    """Return the socket at which it is asked whether a receiver waits at `listening`."""
    with contextlib.ExitStack() as on_error, contextlib.suppress(OSError):
        sock = on_error.enter_context(socket.socket(listening.family, socket.SOCK_DGRAM))
        sock.setblocking(False)
        where = listening.getsockname()
        if listening.family == socket.AF_UNIX:
            where = measuring.beacon_name(where)
        elif listening.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            only = listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(where)
        on_error.pop_all()
        return sock
    return None


def answer(sock: socket.socket) -> None:
    """Answer a question; what is none has no answer, and no answer is longer than its question."""
    with contextlib.suppress(OSError):
        said, ancillary, _, who = sock.recvmsg(64, socket.CMSG_SPACE(_IN6_PKTINFO.size))
        if len(said) == len(measuring.ASK) + measuring.NONCE_NBYTES and said.startswith(measuring.ASK) and who:
            sock.sendmsg([measuring.ANSWER + said[len(measuring.ASK) :]], _from_where_it_came_to(ancillary), 0, who)


def _from_where_it_came_to(ancillary: Ancillary) -> Ancillary:
    """Return what has a datagram leave from the address to which another one came.

    A socket that is bound to all addresses would take the one that its route prefers, and who asked another one hears
    no answer. The interface is left to the route.
    """
    found: list[tuple[int, int, bytes]] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO) and len(data) >= _IN_PKTINFO.size:
            local = _IN_PKTINFO.unpack_from(data)[1]
            found.append((level, kind, _IN_PKTINFO.pack(0, local, bytes(4))))
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) >= _IN6_PKTINFO.size:
            local = _IN6_PKTINFO.unpack_from(data)[0]
            found.append((level, kind, _IN6_PKTINFO.pack(local, 0)))
    return found
