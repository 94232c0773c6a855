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
from blkmig import channel, errors, files
from blkmig.savevm import commands

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


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_source_that_is_known_to_have_done_is_not_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
    writers_after: str,
) -> None:
    """What it sends behind DONE has come, and cannot be read: it does not come again, since it has ended well."""
    sent = threading.Event()
    is_done: list[bool] = []

    def done(self: commands.Commands, number: int, nameless: object) -> None:
        say(self, number, ())
        is_done.append(True)

    def next_run(self: channel.InputQEMUFile) -> tuple[int, bytes, int, int]:
        if is_done:
            assert sent.wait(30)
            raise errors.ChannelError("receiving", uri=self.uri, cause=OSError(5, "broken"))
        return read(self)

    say, read = commands.Commands.done, channel.InputQEMUFile.next_run
    monkeypatch.setattr(commands.Commands, "done", done)
    monkeypatch.setattr(channel.InputQEMUFile, "next_run", next_run)
    uri = "tcp:127.0.0.1:0" if scheme == "tcp" else f"unix:{tmp_path}/s"
    receiver = lab.Receiver(uri, {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    blkmig.send([disk], receiver.uri, writers_after=writers_after)
    sent.set()
    assert receiver.result().reconnects == 0
    assert "is waited for" not in caplog.text
    assert (tmp_path / "t.raw").read_bytes() == b"x" * MIB
