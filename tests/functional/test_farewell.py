# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver makes of a link that breaks about the moment when its source is told: which targets stay."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import errors, files

MIB = 1 << 20
OPEN_RETURN_PATH = struct.pack(">BHH", 8, 1, 0)
BEHIND_CONFIGURATION = 13  # header and an empty machine name
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def stream(tmp_path: Path) -> bytes:
    """Return the stream of a small disk, from a source that waits for its target's word."""
    (tmp_path / "a.raw").write_bytes(b"a" * (MIB + 700))
    blkmig.send([tmp_path / "a.raw"], f"file:{tmp_path}/stream")
    whole = (tmp_path / "stream").read_bytes()
    return whole[:BEHIND_CONFIGURATION] + OPEN_RETURN_PATH + whole[BEHIND_CONFIGURATION:]


def connect(receiver: lab.Receiver) -> socket.socket:
    """Connect to a receiver on TCP."""
    return socket.create_connection(("127.0.0.1", int(receiver.uri.rpartition(":")[2])))


def test_a_link_that_breaks_after_the_word_leaves_the_target(tmp_path: Path, stream: bytes) -> None:
    """A2, B9: the source may have the word and may have moved, so what it was told of must not vanish."""
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"a": tmp_path / "copy.raw"})
    with connect(receiver) as source:
        source.sendall(stream)
        assert source.recv(8, socket.MSG_WAITALL) == struct.pack(">HHI", 1, 4, 0)
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    with pytest.raises(errors.InDoubt, match="the target is whole, and the source may not know that"):
        receiver.result()
    assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "a.raw").read_bytes()


def test_a_source_that_gave_up_before_the_word_leaves_no_target(
    tmp_path: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: the writers of such a source may have gone on before its last pages were taken."""
    flush, begun, gone = files.FileBackend.flush, threading.Event(), threading.Event()

    def wait_and_flush(backend: files.FileBackend) -> None:
        begun.set()
        assert gone.wait(60)
        flush(backend)

    monkeypatch.setattr(files.FileBackend, "flush", wait_and_flush)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"a": tmp_path / "copy.raw"})
    with connect(receiver) as source:
        source.sendall(stream)
        assert begun.wait(60)
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    gone.set()
    with pytest.raises(errors.ChannelError, match="the source has given up"):
        receiver.result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.raw", "stream"]
