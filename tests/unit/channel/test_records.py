# SPDX-License-Identifier: GPL-2.0-or-later
"""Records that are opened and sealed: by whole records, in order, whatever comes between them."""

from __future__ import annotations

import collections
import contextlib
import random
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
import tls as certificates_of

from blkmig.channel import records, session

peers.require("openssl")

TIMEOUT = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates_of.make_certificates(tmp_path_factory.mktemp("tls") / "pki", host="localhost")


def context_of(folder: Path, kind: int, who: str) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.load_cert_chain(folder / f"{who}-cert.pem", folder / f"{who}-key.pem")
    context.load_verify_locations(folder / "ca-cert.pem")
    return context


def shake_hands(context: ssl.SSLContext, sock: socket.socket, hostname: str | None = None) -> records.Records:
    """Return the records of a socket that does not block any more."""
    sock.setblocking(False)
    made, room = session.Session(context, sock, hostname=hostname), memoryview(bytearray(1 << 14))
    while not made.shake_hands() or not made.flush():
        made.flush()
        assert select.select([sock], [], [], TIMEOUT)[0]
        if not made.is_secure:
            assert made.take(room)
    return records.Records(made)


class End:
    """One end: its records, and its socket."""

    def __init__(self, made: records.Records, sock: socket.socket) -> None:
        self.records, self.socket = made, sock

    def send(self, data: bytes) -> None:
        with memoryview(data) as view:
            sealed = memoryview(self.records.seal(view))
        while sealed:
            assert select.select([], [self.socket], [], TIMEOUT)[1]
            sealed = sealed[self.socket.send(sealed) :]

    def receive(self, nbytes: int, *, many: bool = True) -> bytes | None:
        """Return what one call gives, b"" at the end, None if nothing has come."""
        room = memoryview(bytearray(nbytes))
        got = self.records.unseal(self.socket, room, many)
        return None if got is None else bytes(room[:got])

    def read(self, nbytes: int, *, many: bool = True) -> bytes:
        """Return so many bytes, in whatever pieces they come."""
        got = b""
        while len(got) < nbytes:
            piece = self.receive(nbytes - len(got), many=many)
            assert piece != b"", "the end"
            got += piece or b""
            assert piece or select.select([self.socket], [], [], TIMEOUT)[0]
        return got


@pytest.fixture
def ends(folder: Path) -> Iterator[tuple[End, End]]:
    near, far = socket.socketpair()
    client, server = (
        context_of(folder, ssl.PROTOCOL_TLS_CLIENT, "client"),
        context_of(folder, ssl.PROTOCOL_TLS_SERVER, "server"),
    )
    server.num_tickets = 0
    made: list[records.Records] = []
    with near, far:
        thread = threading.Thread(target=lambda: made.append(shake_hands(server, far)))
        thread.start()
        one = End(shake_hands(client, near, "localhost"), near)
        thread.join()
        yield one, End(made[0], far)


@pytest.mark.parametrize("seed", range(4))
def test_what_was_sealed_is_opened_in_any_pieces(ends: tuple[End, End], seed: int) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(1 << 20)
    sent = got = 0
    while got < len(data):
        if sent < len(data) and sent - got < 1 << 15:
            piece = data[sent : sent + rng.randint(1, 1 << 15)]
            ends[0].send(piece)
            sent += len(piece)
        came = ends[1].receive(rng.choice((1, 7, 1 << 13, 1 << 14, 1 << 16)), many=rng.random() < 0.5)
        assert data.startswith(came or b"", got), seed
        got += len(came or b"")


def test_one_record_is_opened_where_one_is_asked_for(ends: tuple[End, End]) -> None:
    """Behind a head comes its payload, which is not to be copied once more."""
    ends[0].send(b"head")
    ends[0].send(b"payload" * 1000)
    assert ends[1].receive(1 << 16, many=False) == b"head"
    assert ends[1].receive(1 << 16, many=False) == b"payload" * 1000


def test_whether_something_has_come(ends: tuple[End, End]) -> None:
    one, other = ends
    assert not other.records.has_come(other.socket)
    assert other.receive(10) is None
    with memoryview(b"word") as view:
        sealed = one.records.seal(view)
    one.socket.send(sealed[:-1])
    assert not other.records.has_come(other.socket), "the record is not whole"
    one.socket.send(sealed[-1:])
    assert other.records.has_come(other.socket)
    assert other.records.has_come(other.socket)
    assert other.receive(2) == b"wo"
    assert other.records.has_come(other.socket)
    assert other.receive(2) == b"rd"
    assert not other.records.has_come(other.socket)


@pytest.mark.parametrize("is_said", [True, False])
def test_the_end_comes_behind_what_came(ends: tuple[End, End], is_said: bool) -> None:
    one, other = ends
    one.send(b"word")
    if is_said:
        one.socket.send(one.records.goodbye())
    assert one.records.goodbye() == b"" or not is_said, "it is said once"
    one.socket.shutdown(socket.SHUT_WR)
    assert other.receive(10) == b"word"
    assert other.receive(10) == b""
    assert other.records.has_come(other.socket)
    assert other.receive(10) == b""
    assert other.records.is_cut is not is_said
    other.send(b"the other direction goes on")
    assert one.read(27) == b"the other direction goes on"


def test_what_breaks_comes_behind_what_came(ends: tuple[End, End]) -> None:
    """And again with each call."""
    one, other = ends
    one.send(b"word")
    with memoryview(b"changed") as view:
        sealed = one.records.seal(view)
    one.socket.send(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert other.receive(1 << 16) == b"word"
    for _ in range(2):
        with pytest.raises(OSError, match="what came was changed on its way"):
            other.receive(1 << 16)
    assert other.records.broken is not None
    with pytest.raises(OSError, match="changed on its way"):
        one.read(1)  # the alert


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PIECE_NBYTES", 1 << 14)


def test_what_has_come_is_dropped_once(small_pieces: None, ends: tuple[End, End]) -> None:
    """A peer that sends all the time does not hold up whoever closes."""
    one, other = ends
    one.socket.send(one.records.goodbye())
    other.records.drain(other.socket)
    assert not select.select([other.socket], [], [], 0)[0]
    for _ in range(3):
        one.socket.send(bytes(1 << 14))
    other.records.drain(other.socket)
    assert len(other.socket.recv(1 << 20)) == 2 << 14


@contextlib.contextmanager
def openssl_client(folder: Path) -> Iterator[tuple[End, subprocess.Popen[bytes]]]:
    """Yield this end of a connection that ``openssl s_client`` has made, and that."""
    names = ["-CAfile", folder / "ca-cert.pem", "-cert", folder / "client-cert.pem", "-key", folder / "client-key.pem"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(
            ["openssl", "s_client", "-connect", where, *names, "-servername", "localhost"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            too_late = threading.Timer(TIMEOUT, process.kill)
            too_late.start()
            try:
                with server.accept()[0] as sock:
                    yield End(shake_hands(context_of(folder, ssl.PROTOCOL_TLS_SERVER, "server"), sock), sock), process
            finally:
                too_late.cancel()
                process.kill()


@pytest.mark.parametrize("word", [b"k\n", b"K\n"])
def test_a_peer_that_changes_its_keys(folder: Path, word: bytes) -> None:
    """And with K asks for new ones: they are in use from our next record on."""
    with openssl_client(folder) as (end, process):
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(20):
            process.stdin.write(b"before %02d\n" % number)
            process.stdin.flush()
            assert end.read(10) == b"before %02d\n" % number
            process.stdin.write(word)
            process.stdin.flush()
            assert b"KEYUPDATE\n" in process.stdout
            assert end.receive(1) is None
            end.send(b"answer %02d\n" % number)
            assert b"answer %02d\n" % number in process.stdout


def test_a_peer_that_asks_for_new_keys_again_and_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing is sent, the answers wait in memory: it is given up before they are many."""
    monkeypatch.setattr(records, "MOST_REPLIES", 400)
    with openssl_client(folder) as (end, process):
        assert process.stdin is not None
        assert process.stdout is not None

        def ask() -> None:
            process.stdin.write(b"K\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            assert b"KEYUPDATE\n" in process.stdout  # type: ignore[operator]
            assert end.receive(1) is None

        with pytest.raises(OSError, match="asks for new keys again and again"):
            collections.deque((ask() for _ in range(40)), 0)
