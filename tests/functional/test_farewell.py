# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver makes of a link that breaks about the moment when its source is told: which targets stay."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import channel, errors, files, savevm
from blkmig.migration import farewell, questions
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


@pytest.mark.parametrize("moment", ["before the word", "behind it"])
def test_a_receiver_that_is_cancelled_at_the_word_is_in_doubt(
    tmp_path: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What was told, or may have been, stays; so nobody says that it was cancelled, as if nothing had come of it."""

    def cancelled(*args: Any, **options: Any) -> Any:
        receiver.migration.cancel()
        return do(*args, **options)

    owner, name = (savevm.LoadVM, "finish") if moment == "before the word" else (farewell, "read_on")
    do = getattr(owner, name)
    monkeypatch.setattr(owner, name, cancelled)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"a": tmp_path / "copy.raw"})
    with connect(receiver) as source:
        source.sendall(stream)
        with pytest.raises(errors.InDoubt, match="this end was cancelled") as caught:
            receiver.result()
    assert caught.value.__notes__ == [f"{str(tmp_path / 'copy.raw')!r} is complete, but the source may not know"]
    assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "a.raw").read_bytes()


def test_a_cancel_that_comes_when_all_is_there(tmp_path: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the command that has sent it is waited for by then."""

    def cancelled(self: channel.InputQEMUFile) -> None:
        receiver.migration.cancel()
        close(self)

    close = channel.InputQEMUFile.close
    monkeypatch.setattr(channel.InputQEMUFile, "close", cancelled)
    receiver = lab.Receiver(f"exec:cat {tmp_path}/stream; sleep 1000", {"a": tmp_path / "copy.raw"})
    assert receiver.result().status == "completed"
    assert "the disks are here, but: cancelled" in receiver.migration.stats.notes[-1]
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


@pytest.mark.parametrize("name", ["await_session", "await_reply"])
def test_a_source_that_gives_up_before_it_has_its_incarnation_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The target has SESSION by then, and nobody comes again: it waits for nobody, though it was never heard."""
    is_there = threading.Event()

    def gives_up(self: questions.Questions, *bounds: float) -> None:
        assert is_there.wait(30)
        raise errors.Cancelled("given up")

    def lobby(self: commands.Commands, answer: object) -> None:
        is_there.set()
        say(self, answer)

    say = commands.Commands.answer_session
    monkeypatch.setattr(commands.Commands, "answer_session", lobby)
    monkeypatch.setattr(questions.Questions, name, gives_up)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    with pytest.raises(errors.Cancelled):
        blkmig.send([blkmig.MemoryBackend(bytearray(MIB), name="d")], receiver.uri)
    with pytest.raises((errors.ChannelError, errors.TruncatedStream)):
        receiver.result()
    assert not (tmp_path / "t.raw").exists()


def test_no_key_is_left_of_what_is_known_to_be_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled behind DONE, the source cannot end its stream; that nobody is there to be told so changes nothing."""

    def complete(*_args: object) -> None:
        receiver.migration.cancel()
        receiver.join()
        raise errors.Cancelled("too late")

    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    monkeypatch.setattr(savevm.SaveState, "state_complete_precopy", complete)
    (tmp_path / "d.raw").write_bytes(b"x" * MIB)
    with blkmig.FileBackend(tmp_path / "d.raw", name="d") as disk:
        blkmig.send([disk], receiver.uri, writers_after="refuse")
    receiver.result()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".d.raw")]
