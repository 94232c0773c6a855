# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that play a script: each step, at either end, over each kind of link; and what a broken script says."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pauses
import pytest
import receivers

import blkmig
from blkmig import channel, errors, testing
from blkmig.testing import end, expect, faults, half_close, reset, say, silence, take, take_all, take_until, wait_for


def connected(peer: testing.Peer) -> socket.socket:
    return receivers.connected(peer.uri)


def uri_of(kind: str, folder: Path) -> str:
    return "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{folder}/s"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_conversation(kind: str, tmp_path: Path) -> None:
    steps = [say(b"hello "), expect(b"one"), take(3), take_until(b"END"), say(b"bye"), half_close(), take_all()]
    with testing.Peer.listening(*steps, uri=uri_of(kind, tmp_path)) as peer, connected(peer) as sock:
        sock.sendall(b"onetwothreeENDmore")
        came = b""
        while piece := sock.recv(100):
            came += piece
        sock.shutdown(socket.SHUT_WR)
        peer.join()
    assert came == b"hello bye"
    assert peer.received == b"onetwothreeENDmore"


def test_what_was_read_too_much_comes_again() -> None:
    with testing.Peer.listening(take_until(b"x"), expect(b"abc"), take_until(b"yz"), expect(b"")) as peer:
        with connected(peer) as sock:
            sock.sendall(b"...xabcyz")
            peer.join()


@pytest.mark.parametrize(
    ("step", "sent", "words"),
    [
        (expect(b"abc"), b"abd", "expected b'abc', and b'abd' came"),
        (expect(b"abc"), b"ab", "waited for b'abc', and the stream ended"),
        (take(3), b"ab", "waited for 3 bytes, and the stream ended"),
        (take_until(b"abc"), b"ab", "waited for b'abc', and the stream ended"),
    ],
)
def test_a_script_that_is_not_kept_to(step: testing.Step, sent: bytes, words: str) -> None:
    with testing.Peer.listening(step) as peer, connected(peer) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(testing.ScriptError, match=words):
            peer.join()


def test_leaving_tells_of_a_broken_script() -> None:
    def leave() -> None:
        with testing.Peer.listening(expect(b"a")) as peer, connected(peer) as sock:
            sock.sendall(b"b")
            assert sock.recv(1) == b""

    with pytest.raises(testing.ScriptError):
        leave()


def test_who_sees_the_link_end_finds_the_error() -> None:
    """However late the thread of the peer goes on behind the end of the link."""
    left = threading.Event()

    class Late(socket.socket):
        def __exit__(self, *raised: object) -> None:
            super().__exit__(*raised)
            assert left.wait(5)

    def leave() -> None:
        mine, yours = socket.socketpair()
        late = Late(fileno=mine.detach())
        with yours, testing.Peer("fd:", lambda: late, left.set, expect(b"a")):
            yours.sendall(b"b")
            assert yours.recv(1) == b""

    with pytest.raises(testing.ScriptError):
        leave()


def test_waits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "SECONDS", 0.05)
    for step in (take(1), wait_for(threading.Event())):
        with testing.Peer.listening(step) as peer, connected(peer):
            pauses.until(lambda: peer.is_through)
            with pytest.raises(testing.ScriptError, match=r"within 0\.05 s|for 0\.05 s"):
                peer.join()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("step", [silence(), take_all(), take(5)])
def test_leaving_ends_every_step(step: testing.Step, kind: str, tmp_path: Path) -> None:
    with testing.Peer.listening(say(b"x"), step, uri=uri_of(kind, tmp_path)) as peer:
        sock = connected(peer)
        assert sock.recv(1) == b"x"
    assert peer.is_through
    assert sock.recv(1) == b""
    sock.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_nobody_comes(kind: str, tmp_path: Path) -> None:
    with testing.Peer.listening(say(b"x"), uri=uri_of(kind, tmp_path)) as peer:
        assert not peer.is_through
    assert peer.is_through


def test_reset_and_end() -> None:
    with testing.Peer.listening(take(1), reset()) as peer, connected(peer) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with testing.Peer.listening(take(1), end()) as peer, connected(peer) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b""


def test_a_target_that_has_failed() -> None:
    """What a sender makes of its word: this is what such a peer is for."""
    word = testing.message(1, 28)
    with testing.Peer.listening(take(5000), say(word), half_close(), take_all()) as peer:
        with pytest.raises(errors.MigrationError, match="No space left on device"):
            blkmig.send([blkmig.MemoryBackend(bytearray(b"x" * (24 << 20)), name="d")], peer.uri, connect_timeout=0.5)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_source_that_is_cut(kind: str, tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(range(256)) * 4096)
    blkmig.send([tmp_path / "d.raw"], f"file:{tmp_path}/stream")
    stream = (tmp_path / "stream").read_bytes()
    with receivers.receiving(uri_of(kind, tmp_path), tmp_path / "copy.raw") as (uri, received):
        with testing.Peer.connecting(uri, say(stream[:5000]), end()) as peer:
            peer.join()
            with pytest.raises(errors.TruncatedStream):
                received.result(testing.SECONDS)
    assert not (tmp_path / "copy.raw").exists()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with testing.Peer.paired(say(b"x")), testing.Peer.listening(say(b"x"), uri=f"unix:{tmp_path}/s") as peer:
            connected(peer).close()
        (tmp_path / "s").unlink()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pair() -> None:
    with testing.Peer.paired(expect(b"ping"), say(b"pong")) as peer:
        with channel.connect(peer.uri, timeout=testing.SECONDS) as f:
            f.put_buffer(b"ping")
            f.flush()
            way_back = f.return_path()
            assert way_back is not None
            assert way_back.get_buffer(4) == b"pong"
            f.abort()
            way_back.abort()
        peer.join()


def own_assert(played: testing.Peer) -> None:
    assert played.read() == b"y", "my own words"


def own_error(played: testing.Peer) -> None:
    raise ZeroDivisionError("my own words")


def own_oserror(played: testing.Peer) -> None:
    raise FileNotFoundError(2, "my own words")


def own_exit(played: testing.Peer) -> None:
    raise SystemExit("my own words")


@pytest.mark.parametrize("step", [own_assert, own_error, own_oserror, own_exit])
@pytest.mark.parametrize("way", ["join", "leave"])
def test_what_a_step_of_the_tests_raises_is_told(step: testing.Step, way: str) -> None:
    """It was printed by the thread, and the test passed."""

    def play() -> None:
        with testing.Peer.paired(take(1), step) as peer:
            with socket.socket(fileno=os.dup(int(peer.uri[3:]))) as sock:
                sock.sendall(b"xx")
                with contextlib.suppress(ConnectionResetError):  # where it has not read all
                    while sock.recv(9):
                        pass
            if way == "join":
                peer.join()

    with pytest.raises((AssertionError, ZeroDivisionError, FileNotFoundError, SystemExit), match="my own words"):
        play()


@pytest.mark.parametrize("step", [b"abc", None, [testing.take_all()]], ids=["bytes", "None", "list"])
def test_what_is_no_step(step: Any) -> None:
    for make in (testing.Peer.listening, testing.Peer.paired):
        with pytest.raises(TypeError, match="a step is a function"):
            make(step)
