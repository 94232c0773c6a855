# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that keeps the target's threads at work while it hands its disks over: no disk is closed under them."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import handing_over as say
import lab
import pytest
import savevm_streams as streams
from receivers import connected

from blkmig import block, savevm
from blkmig.block import ExtraKind, askwords, extra
from blkmig.files import file

SOON = 0.2
"""How long a thread is at it, unless its disk is closed."""

KEY = bytes(range(16))


class Busy:
    """A verb of files that takes long in a thread of this name; `was_closed` if the file was closed meanwhile."""

    def __init__(self, patched: pytest.MonkeyPatch, thread: str, verb: str) -> None:
        self.has_begun, self._is_closed = threading.Event(), threading.Event()
        self.was_closed: bool | None = None
        call, close = getattr(file.FileBackend, verb), file.FileBackend.close

        def take_long(disk: file.FileBackend, *args: Any) -> Any:
            if threading.current_thread().name == thread:
                self.has_begun.set()
                self.was_closed = self._is_closed.wait(SOON)
            return call(disk, *args)

        def note_and_close(disk: file.FileBackend) -> None:
            self._is_closed.set()
            close(disk)

        patched.setattr(file.FileBackend, verb, take_long)
        patched.setattr(file.FileBackend, "close", note_and_close)


def hear_until(source: socket.socket, word: bytes) -> None:
    heard = b""
    while word not in heard:
        piece = source.recv(4096)
        assert piece, f"{heard!r}, and no {word!r}"
        heard += piece


def ready(tmp_path: Path) -> tuple[lab.Receiver, socket.socket]:
    """Return a receiver that compares, and has a session, behind READY 1; and its source."""
    (tmp_path / "d.raw").write_bytes(b"o" * lab.MIB)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"}, in_place=True)
    source = connected(receiver.uri)
    source.settimeout(30)
    session = extra(ExtraKind.SESSION, savevm.Session(KEY, 0, 1, 60).encode())
    source.sendall(say.ASKING + say.start(session) + say.part(say.ZERO) + say.end(1))
    hear_until(source, say.ready(1))
    return receiver, source


def test_a_question_between_ready_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a lost link there may be questions again; the digest thread read a file that was closed."""
    busy = Busy(monkeypatch, "blkmig-digest", "zeroes_end")
    receiver, source = ready(tmp_path)
    source.close()
    with connected(receiver.uri) as source:
        source.settimeout(30)
        source.sendall(savevm.Session(KEY, 1, 2, 60).again())
        source.sendall(say.part(extra(ExtraKind.ASK, askwords.Ask(1, 0, 20, ((0, 1),)).encode())))
        assert busy.has_begun.wait(30)
        source.sendall(say.commit(1))
        hear_until(source, say.done(1))
        source.sendall(streams.end(1) + streams.EOF)
    receiver.result()
    assert busy.was_closed is False


def test_a_barrier_between_ready_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of the barriers flushed a file that was closed."""
    busy = Busy(monkeypatch, "blkmig-barrier", "flush_drained")
    receiver, source = ready(tmp_path)
    with source:
        source.sendall(streams.part(1, block.barrier_records(1)))
        assert busy.has_begun.wait(30)
        source.sendall(say.commit(1))
        hear_until(source, say.done(1))
        source.sendall(streams.end(1) + streams.EOF)
    receiver.result()
    assert busy.was_closed is False
