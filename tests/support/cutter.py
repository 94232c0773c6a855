# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay between a sender and a receiver that cuts connections: after so many bytes, by a reset or by silence."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Literal

PIECE = 64 << 10
RESET = struct.pack("ii", 1, 0)

How = Literal["reset", "silence", "end"]


class Link:
    """A connection that came, and the one that was made for it."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender, self.receiver = sender, receiver
        self.silent = threading.Event()


class Cutter:
    """Listens at `uri` and passes on to the receiver at `target`; cut number i is `cuts[i]`: bytes of the stream, how.
    A negative number counts the bytes that the receiver says.

    ``silence``: nothing passes any more, in either direction, and both connections stay open. When the cuts are used
    up, connections are left alone.
    """

    def __init__(self, target: str, cuts: Iterable[tuple[int, How]]) -> None:
        scheme, _, place = target.partition(":")
        host, _, port = place.rpartition(":")
        self._target = host, int(port)
        cuts = list(cuts)
        self._cuts, self._planned = iter(cuts), len(cuts)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._links: list[Link] = []
        self.uri = f"{scheme}:127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = self.done = 0
        """Connections that came, and cuts that were made."""

        self.refuses = threading.Event()
        """While it is set, whoever comes is closed at once."""

        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> Cutter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # which wakes who waits in accept()
        self._server.close()
        for link in self._links:
            _end(link.sender, "reset")
            _end(link.receiver, "reset")

    @property
    def is_through(self) -> bool:
        """Whether all planned cuts were made."""
        return self.done >= self._planned

    @property
    def is_up(self) -> bool:
        """Whether something passes on the connection that came last."""
        return not self._links[-1].silent.is_set()

    def cut_now(self, how: How) -> None:
        """Cut the connection that came last, whatever passes."""
        link = self._links[-1]
        if not link.silent.is_set():
            self._cut(link, how)

    def _cut(self, link: Link, how: How) -> None:
        self.done += 1
        link.silent.set()
        if how != "silence":
            _end(link.sender, how)
            _end(link.receiver, how)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sender, _ = self._server.accept()
                self.connections += 1
                if self.refuses.is_set():
                    _end(sender, "reset")
                    continue
                try:
                    link = Link(sender, socket.create_connection(self._target))
                except OSError:
                    _end(sender, "reset")
                    continue
                self._links.append(link)
                threading.Thread(target=self._relay, args=(link, next(self._cuts, None)), daemon=True).start()

    def _relay(self, link: Link, cut: tuple[int, How] | None) -> None:
        back, cut = (cut, None) if cut is not None and cut[0] < 0 else (None, cut)
        threading.Thread(target=self._pass_on, args=(link, back), daemon=True).start()
        left = None if cut is None else cut[0]
        with contextlib.suppress(OSError):
            while left is None or left > 0:
                piece = link.sender.recv(PIECE if left is None else min(PIECE, left))
                if link.silent.is_set():
                    return
                if not piece:
                    link.receiver.shutdown(socket.SHUT_WR)
                    return
                link.receiver.sendall(piece)
                left = None if left is None else left - len(piece)
            assert cut is not None
            self._cut(link, cut[1])

    def _pass_on(self, link: Link, cut: tuple[int, How] | None) -> None:
        """Pass on what the receiver says, up to its cut if there is one."""
        left = math.inf if cut is None else -cut[0]
        with contextlib.suppress(OSError):
            while piece := link.receiver.recv(int(min(PIECE, left))):
                if link.silent.is_set():
                    return
                link.sender.sendall(piece)
                left -= len(piece)
                if cut is not None and not left:
                    self._cut(link, cut[1])
                    return
            if not link.silent.is_set():
                link.sender.shutdown(socket.SHUT_WR)


def _end(sock: socket.socket, how: str) -> None:
    with contextlib.suppress(OSError):
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.shutdown(socket.SHUT_RD if how == "reset" else socket.SHUT_RDWR)  # which also wakes the other thread
    sock.close()
