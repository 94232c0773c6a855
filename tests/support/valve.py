# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay between a sender and a receiver that can be shut, as a target that freezes, and opened again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

PIECE = 64 << 10


class Valve:
    """Listens on a unix socket and passes on what comes to the receiver at `uri`, and what that says.

    While it is shut it takes nothing: what a sender still gets rid of is what fits the buffers of its own socket.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.uri = f"unix:{folder}/valve"
        self.passed = 0
        """Bytes of the stream that were passed on."""

        self._target = uri.removeprefix("unix:")
        self._open = threading.Event()
        self._open.set()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"{folder}/valve")
        self._server.listen(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def shut(self) -> None:
        """Freeze."""
        self._open.clear()

    def open(self) -> None:
        """Go on."""
        self._open.set()

    def _run(self) -> None:
        with self._server, self._server.accept()[0] as sender, socket.socket(socket.AF_UNIX) as receiver:
            receiver.connect(self._target)
            back = threading.Thread(target=self._pass_on, args=(receiver, sender, self.heard), daemon=True)
            back.start()
            self._pass_on(sender, receiver, self.sent)
            back.join(30)

    def sent(self, piece: bytes) -> None:
        """Take note of what was passed on of the stream."""
        self.passed += len(piece)

    def heard(self, piece: bytes) -> None:
        """Take note of what was passed on of what the receiver says."""

    def _pass_on(self, source: socket.socket, target: socket.socket, passed: Callable[[bytes], None]) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._open.wait()
                piece = source.recv(PIECE)
                self._open.wait()
                if not piece:
                    break
                target.sendall(piece)
                passed(piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
