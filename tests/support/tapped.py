# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay between a sender and a receiver that keeps what passes in either direction, and may change it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

Edit = Callable[[bytes], bytes]
"""Given what is to be passed on, return what is passed on instead."""

DIGEST = 0x8006


class Tap:
    """Listens on a unix socket and passes everything on to the receiver at `uri`, whose messages are edited one by one.

    Of the stream, each piece that is read is edited, whatever it holds.
    """

    def __init__(
        self, folder: Path, uri: str, *, edit: Edit = lambda piece: piece, edit_message: Edit = lambda message: message
    ) -> None:
        self.uri = f"unix:{folder}/tap"
        self.stream = bytearray()
        self.messages: list[bytes] = []
        self._edit, self._edit_message = edit, edit_message
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"{folder}/tap")
        self._server.listen(1)
        self._target = uri.removeprefix("unix:")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        """Return what has passed, in both directions."""
        return len(self.stream) + sum(map(len, self.messages))

    def digests(self) -> list[bytes]:
        """Return the messages DIGEST that have passed."""
        return [message for message in self.messages if message.startswith(struct.pack(">H", DIGEST))]

    def join(self) -> None:
        """Wait until both ends have closed."""
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with self._server, socket.socket(socket.AF_UNIX) as target, self._server.accept()[0] as source:
            target.connect(self._target)
            back = threading.Thread(target=self._pass_messages, args=(target, source), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                while piece := source.recv(1 << 16):
                    piece = self._edit(piece)
                    self.stream += piece
                    target.sendall(piece)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)  # also where the source was reset: the target is to hear of it
            with contextlib.suppress(OSError):
                source.shutdown(socket.SHUT_RD)
            back.join()

    def _pass_messages(self, target: socket.socket, source: socket.socket) -> None:
        with contextlib.suppress(OSError), target.makefile("rb") as file:
            while len(head := file.read(4)) == 4:
                message = self._edit_message(head + file.read(struct.unpack(">HH", head)[1]))
                self.messages.append(message)
                source.sendall(message)
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_WR)
