# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that act as no honest one does."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

import blkmig

MIB = 1 << 20
HANGS = 30
"""Seconds after which an end that should have ended is said to hang."""
OPEN_RETURN_PATH = b"\x08\0\1\0\0"
Act = Callable[[socket.socket, threading.Event], None]


@contextlib.contextmanager
def acting(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let a peer act in a thread for the length of the ``with``; that its link goes is no error of the peer's."""
    over = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):
            act(over)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(HANGS)
        assert not thread.is_alive()


def gone(sock: socket.socket, over: threading.Event) -> None:
    sock.close()


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good stream of a disk of 3 MiB; the source has asked for an answer."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "d.raw").write_bytes(random.Random(1).randbytes(3 * MIB))
    blkmig.send([folder / "d.raw"], f"file:{folder}/stream")
    whole = (folder / "stream").read_bytes()
    first = whole.index(b"\1\0\0\0\1\5block")
    return whole[:first] + OPEN_RETURN_PATH + whole[first:]


def swallow(sock: socket.socket, nbytes: int | None = None) -> None:
    """Read `nbytes`, or until a description has come: then the source has sent everything."""
    seen, count = b"", 0
    while (nbytes is None or count < nbytes) and (piece := sock.recv(1 << 16)):
        count += len(piece)
        seen = seen[-64:] + piece
        if nbytes is None and seen.endswith(b"}") and b'"blkmig"' in seen:
            return


def answers(word: bytes, after: int | None) -> Act:
    """Return what says `word` when it has read `after` bytes, and reads on."""

    def act(sock: socket.socket, over: threading.Event) -> None:
        swallow(sock, after)
        sock.sendall(word)
        swallow(sock)
        over.wait()

    return act
