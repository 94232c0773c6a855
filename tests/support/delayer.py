# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay between a sender and a receiver that holds up what passes, each connection in its own way."""

from __future__ import annotations

import contextlib
import random
import socket
import threading

PIECE = 64 << 10


class Delayer:
    """Listens at `uri` and passes on to the receiver at `target`; pieces are held up at random, by `seed`."""

    def __init__(self, target: str, seed: int, most_seconds: float = 0.004) -> None:
        host, _, port = target.removeprefix("tcp:").rpartition(":")
        self._target = host, int(port)
        self._seed, self._most = seed, most_seconds
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._is_closed = threading.Event()
        self.uri = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> Delayer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_closed.set()
        for sock in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sender, _ = self._server.accept()
                receiver = socket.create_connection(self._target)
                self._sockets += [sender, receiver]
                rng = random.Random(self._seed * 1000 + self.connections)
                self.connections += 1
                for pair in ((sender, receiver), (receiver, sender)):
                    threading.Thread(target=self._relay, args=(*pair, rng), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, rng: random.Random) -> None:
        slowness = self._most * rng.random()  # some connections are much slower than others
        with contextlib.suppress(OSError):
            while piece := source.recv(rng.randrange(1, PIECE)):
                if rng.random() < 0.5:
                    self._is_closed.wait(slowness * rng.random())
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
