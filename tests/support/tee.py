# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream that is recorded on its way from a sender to a receiver, which talk to each other as ever."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


class Tee:
    """Listens for one sender, connects it to the receiver at `path`, and keeps what the sender says in `data`."""

    def __init__(self, folder: Path, path: str) -> None:
        self.data = bytearray()
        self.uri = f"unix:{folder}/tee"
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/tee")
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        sender, _ = self._listener.accept()
        receiver = socket.socket(socket.AF_UNIX)
        with sender, receiver, self._listener:
            receiver.connect(self._path)
            back = threading.Thread(target=_copy, args=(receiver, sender, None), daemon=True)
            back.start()
            _copy(sender, receiver, self.data)
            back.join(30)

    def join(self) -> None:
        """Wait until both have ended."""
        self._thread.join(30)
        assert not self._thread.is_alive()


def _copy(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
    while data := source.recv(1 << 16):
        if kept is not None:
            kept += data
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
