# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay between a sender and a receiver that cuts the link before, within or behind a message of the end."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import cutter

Message = Literal["END", "READY", "COMMIT", "DONE"]
Where = Literal["before", "within", "behind"]
Cut = tuple[Message, Where, cutter.How]

RECORDS: dict[Message, int] = {"END": 9, "COMMIT": 2}
ANSWERS: dict[Message, int] = {"READY": 0x8003, "DONE": 0x8007}
PART, TAIL = bytes.fromhex("0200000001"), bytes.fromhex("00000000000000027e00000001")
"""What stands before and behind an END or a COMMIT, which is the only record of its PART."""

Find = Callable[[bytes], "tuple[int, cutter.How | None]"]


class MessageCutter(cutter.Cutter):
    """Listens at `uri` and passes on to the receiver at `target`; each of `cuts` is made once, one after the other.

    ``behind`` has passed all of a message, ``before`` nothing of it, and ``within`` a half.
    """

    def __init__(self, target: str, cuts: Iterable[Cut]) -> None:
        super().__init__(target, ())
        self._left = list(cuts)
        self._planned = len(self._left)
        self._lock = threading.Lock()

    def _relay(self, link: cutter.Link, cut: tuple[int, cutter.How] | None) -> None:
        back = threading.Thread(target=self._pass, args=(link, link.receiver, link.sender, self._answer), daemon=True)
        back.start()
        self._pass(link, link.sender, link.receiver, self._record)

    def _pass(self, link: cutter.Link, source: socket.socket, target: socket.socket, find: Find) -> None:
        held = b""
        with contextlib.suppress(OSError):
            while piece := source.recv(cutter.PIECE):
                with self._lock:
                    if link.silent.is_set():
                        return
                    held += piece
                    passed, how = find(held)
                    target.sendall(held[:passed])
                    held = held[passed:]
                    if how is not None:
                        self._left.pop(0)
                        self._cut(link, how)
                        return
            target.sendall(held)
        if not link.silent.is_set():
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)  # also where the other one was reset: this one is to hear of it

    def _record(self, held: bytes) -> tuple[int, cutter.How | None]:
        """Return how much of the stream passes now, and how the link is cut then, if it is."""
        message, where, how = self._left[0] if self._left else ("DONE", "before", None)
        if message not in RECORDS:
            return len(held), None
        head = PART + struct.pack(">Q", RECORDS[message] << 9 | 0x100)
        start = held.find(head)
        if start < 0:
            return len(held) - _begun(held, head), None
        nbytes = len(head) + 4
        if len(held) >= start + nbytes:
            nbytes += struct.unpack_from(">I", held, start + nbytes - 4)[0] + len(TAIL)
            if len(held) >= start + nbytes:
                return start + {"before": 0, "within": nbytes // 2, "behind": nbytes}[where], how
        return start, None

    def _answer(self, held: bytes) -> tuple[int, cutter.How | None]:
        passed = 0
        for kind, nbytes in _messages(held):
            for message, where, how in self._left[:1]:
                if ANSWERS.get(message) == kind:
                    return passed + {"before": 0, "within": nbytes // 2, "behind": nbytes}[where], how
            passed += nbytes
        return passed, None


def _begun(held: bytes, head: bytes) -> int:
    """Return how many bytes at the end may be the beginning of `head`."""
    return next(count for count in range(min(len(head), len(held)), -1, -1) if held.endswith(head[:count]))


def _messages(held: bytes) -> Iterator[tuple[int, int]]:
    """Yield type and bytes of each message that is whole."""
    at = 0
    while at + 4 <= len(held):
        kind, length = struct.unpack_from(">HH", held, at)
        if at + 4 + length > len(held):
            return
        yield kind, 4 + length
        at += 4 + length
