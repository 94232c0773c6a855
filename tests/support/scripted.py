# SPDX-License-Identifier: GPL-2.0-or-later
"""A target that takes a whole stream, and says on the return path what a script says."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from blkmig.savevm import words
from blkmig.testing import message as message

PING = b"\x08\x00\x02\x00\x04"
OPEN_RETURN_PATH = b"\x08\x00\x01\x00\x00"
ASK = PING + struct.pack(">I", words.ASK)
BLKMIG_START = b"\x06blkmig\0\0\0\0\0\0\0\1"

Answer = Callable[["Target", int], None]
"""What a target does about a PING of this value."""


def pong(target: Target, value: int) -> None:
    """Answer as a QEMU does, and a blkmig that knows no questions."""
    target.say(message(2, value))


def hello(*versions: int) -> Answer:
    """Return the answer of a blkmig that takes these versions."""

    def answer(target: Target, value: int) -> None:
        word = message(words.MIG_RP_MSG_HELLO, words.Hello(*versions).encode())
        target.say(word if value == words.ASK else message(2, value))

    return answer


def nothing(target: Target, value: int) -> None:
    """Say nothing to any PING."""


class Target:
    """Listens at `uri`; `answer` is called for each PING, `on_start` when a section `blkmig` starts.

    It says that it has everything when it has, if `ends_well`. Memory disks hold nothing that looks like a PING.
    """

    def __init__(
        self, folder: Path, answer: Answer, *, on_start: bytes | None = None, ends_well: bool = True, name: str = "t"
    ) -> None:
        self.uri = f"unix:{folder}/{name}"
        self.received = bytearray()
        self.connection: socket.socket | None = None
        self.is_over = threading.Event()
        self._answer = answer
        self._on_start = on_start
        self._ends_well = ends_well
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"{folder}/{name}")
        self._server.listen(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def say(self, said: bytes) -> None:
        assert self.connection is not None
        with contextlib.suppress(OSError):
            self.connection.sendall(said)

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def idstr(self) -> str | None:
        """Return the section that came."""
        starts = {"block": b"\1\0\0\0\1\5block", "blkmig": b"\1\0\0\0\1\6blkmig"}
        return next((name for name, start in starts.items() if start in self.received), None)

    def without_question(self) -> bytes:
        """Return what came but for the question."""
        return bytes(self.received).replace(ASK, b"")

    def _run(self) -> None:
        with self._server, contextlib.suppress(OSError):
            self.connection = self._server.accept()[0]
            with self.connection:
                self._take()
        self.is_over.set()

    def _take(self) -> None:
        assert self.connection is not None
        seen = 0
        has_started = False
        while piece := self.connection.recv(1 << 20):
            self.received += piece
            while (at := self.received.find(PING, seen)) >= 0 and len(self.received) >= at + 9:
                seen = at + 9
                self._answer(self, int.from_bytes(self.received[at + 5 : seen], "big"))
            if self._on_start is not None and not has_started and BLKMIG_START in self.received:
                has_started = True
                self.say(self._on_start)
            if self._ends_well and self.received.endswith(b"}") and b'"blkmig"' in self.received[-4096:]:
                self.say(message(1, 0))
