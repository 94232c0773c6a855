# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP monitor that does exactly what a test wants."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from blkmig.qemu import qmp

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}
Answer = Callable[[dict[str, Any]], list[dict[str, Any] | None]]
"""What the monitor says to a command: messages, None closes the connection."""


class Monitor:
    """A QMP server for one client, in a thread."""

    def __init__(self, path: Path, answer: Answer, before_first: Sequence[dict[str, Any]] = ()) -> None:
        self.path = path
        self._answer = answer
        self._to_capabilities: list[dict[str, Any] | None] = [*before_first, {"return": {}}]
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._client: socket.socket | None = None
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()  # what is there of a command that has not ended
        self.ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            self._client, _ = self._listener.accept()
            self.say(GREETING)
            for request in self._requests(self._client):
                is_first = request["execute"] == "qmp_capabilities"
                replies = self._to_capabilities if is_first else self._answer(request)
                for reply in replies:
                    if reply is None:
                        self._client.shutdown(socket.SHUT_RDWR)
                        return
                    self.say(reply if "event" in reply or reply is GREETING else {"id": request.get("id")} | reply)
        except OSError:
            return
        finally:
            self.ended.set()

    def _requests(self, client: socket.socket) -> Iterator[dict[str, Any]]:
        """Yield one JSON object after the other; nothing separates them."""
        text = ""
        while data := client.recv(65536):
            text += data.decode()
            while text:
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except json.JSONDecodeError:
                    self.begun.put(text)
                    break
                text = text[end:].lstrip()
                yield request

    def say(self, message: dict[str, Any]) -> None:
        assert self._client is not None
        self._client.sendall(json.dumps(message).encode() + b"\r\n")

    def close(self) -> None:
        self._listener.close()
        if self._client is not None:
            self._client.close()


def event(name: str, **data: Any) -> dict[str, Any]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[Answer], qmp.QmpConnection]]:
    opened: list[Any] = []

    def do_connect(answer: Answer) -> qmp.QmpConnection:
        opened.append(Monitor(tmp_path / "qmp", answer))
        opened.append(qmp.QmpConnection(tmp_path / "qmp", timeout=20))
        return opened[-1]  # type: ignore[no-any-return]

    yield do_connect
    for one in reversed(opened):
        one.close()


def echo(request: dict[str, Any]) -> list[dict[str, Any] | None]:
    return [{"return": request.get("arguments", {})}]
