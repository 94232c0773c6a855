# SPDX-License-Identifier: GPL-2.0-or-later
"""C1: the first connection that is a migration is served; whatever else comes costs nothing and holds nobody up."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import logging
import random
import socket
from pathlib import Path

import pytest
import savevm_streams as streams
from receivers import connected, receiving

import blkmig
from blkmig import channel, errors
from blkmig.channel import accepting, candidates

MIB = 1 << 20
TIMEOUT = 30
MAGIC = b"QEVM"


@pytest.fixture(params=["tcp", "unix"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "tcp:127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/s"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "d.raw").write_bytes(random.Random(1).randbytes(2 * MIB))
    return tmp_path / "d.raw"


def test_scans_garbage_and_squatters_cost_nothing(uri: str, source: Path, tmp_path: Path) -> None:
    with receiving(uri, tmp_path / "copy.raw") as (where, running), contextlib.ExitStack() as stack:
        for said in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\0\0\0\0\0\0", b"QEVN\0\0\0\3", b"QEV"):
            for stays in (False, True):
                sock = connected(where)
                sock.sendall(said)
                stack.callback(sock.close) if stays else sock.close()
        for _ in range(2 * accepting.MAX_CANDIDATES):  # silent ones, more than there is room for
            stack.enter_context(connected(where))
        blkmig.send([source], where)
        assert running.result(TIMEOUT)
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


def test_a_second_migration_is_called_that(
    uri: str, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(uri, tmp_path / "copy.raw") as (where, running):
        with blkmig.MemoryBackend(bytearray(MIB), name="d") as disk, blkmig.outgoing([disk], where) as migration:
            migration.iterate()
            with pytest.raises(errors.TargetFailed, match="another migration has begun at this receiver"):
                blkmig.send([source], where)
            migration.run()
        assert running.result(TIMEOUT)
    assert "no migration" not in caplog.text


def connect_for_ever(uri: str) -> None:
    while True:
        channel.connect(uri, timeout=TIMEOUT).abort()


def test_others_are_refused_while_a_migration_is_served(uri: str, source: Path, tmp_path: Path) -> None:
    with receiving(uri, tmp_path / "copy.raw") as (where, running), connected(where) as early, connected(where) as sock:
        sock.sendall(streams.HEADER + streams.start(1, "block"))  # a QEMU, which does not come again
        with contextlib.suppress(ConnectionResetError):
            assert early.recv(1) == b"", "who was there before is told"
        with pytest.raises(errors.ChannelError, match=r"nobody listens|no such socket|reset"):
            connect_for_ever(where)  # until the receiver has heard the first
        sock.close()
        with pytest.raises(errors.MigrationError):  # a real one that fails is the end
            running.result(TIMEOUT)


def test_a_header_may_come_byte_by_byte(uri: str) -> None:
    with channel.listen(uri) as listener, connected(listener.uri) as sock:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            accepted = pool.submit(lambda: listener.accept(timeout=TIMEOUT, magics=[MAGIC], nbytes=8))
            for byte in b"QEVM\0\0\0\2":
                sock.sendall(bytes([byte]))
            f = accepted.result(TIMEOUT)
        sock.sendall(b"more")
        assert f.get_buffer(12) == b"QEVM\0\0\0\2more"
        assert f.position == 12
        f.abort()


def test_who_says_nothing_has_its_time(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(candidates, "OPENING_SECONDS", 0.05)
    with (
        caplog.at_level(logging.WARNING),
        channel.listen(uri) as listener,
        connected(listener.uri) as sock,
        pytest.raises(errors.ChannelTimeout, match=r"nobody connected within 0.5 s with a migration"),
    ):
        listener.accept(timeout=0.5, magics=[MAGIC], nbytes=8)
    assert "did not begin within 0.05 s" in caplog.text
    with contextlib.suppress(ConnectionResetError):
        assert sock.fileno() == -1 or sock.recv(1) == b""


def test_what_came_instead_is_said(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with channel.listen(uri) as listener, connected(listener.uri) as sock, caplog.at_level(logging.WARNING):
        sock.sendall(b"GET /")
        with pytest.raises(errors.ChannelTimeout):
            listener.accept(timeout=0.2, magics=[MAGIC], nbytes=8)
    assert "no migration, it starts with 47 45 54" in caplog.text


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF])
def test_no_descriptor_is_one_clear_error(uri: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """C7; with connections that are waited for, one of them makes room."""
    real = socket.socket.accept
    fails = [True]

    def accept(self: socket.socket) -> object:
        if fails:
            raise OSError(code, "nothing left")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with channel.listen(uri) as listener, connected(listener.uri):
        with pytest.raises(errors.ChannelError, match="accepting a connection: nothing left"):
            listener.accept(timeout=TIMEOUT, magics=[MAGIC], nbytes=8)


@pytest.mark.parametrize("code", accepting.GONE)
def test_a_connection_that_was_lost_in_the_backlog(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.accept
    fails = [True]

    def accept(self: socket.socket) -> object:
        if fails:
            fails.clear()
            raise OSError(code, "lost")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with channel.listen("tcp:127.0.0.1:0") as listener, connected(listener.uri) as sock:
        sock.sendall(MAGIC + b"\0\0\0\3")
        listener.accept(timeout=TIMEOUT, magics=[MAGIC], nbytes=8).abort()


def test_a_waiting_accept_hears_a_cancel(uri: str) -> None:
    with channel.listen(uri) as listener, connected(listener.uri):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            accepted = pool.submit(lambda: listener.accept(timeout=None, magics=[MAGIC], nbytes=8))
            listener.cancel()
            with pytest.raises(errors.Cancelled):
                accepted.result(TIMEOUT)
