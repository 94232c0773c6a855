# SPDX-License-Identifier: GPL-2.0-or-later
"""Strangers who try again and again to be the sender: they wait, whoever is elsewhere does not, and it is told."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import lab
import pytest
import tls_links
from tls_links import TIMEOUT, hello

import blkmig
from blkmig import channel, errors
from blkmig.channel import accepting, refusals, token

pytest.importorskip("cryptography", reason="a token needs the package cryptography")

MIB = 1 << 20
STRANGER, SENDER = "127.0.0.2", "127.0.0.1"
"""Where they come from; blkmig connects from the latter."""


def connected(uri: str, host: str = STRANGER) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", int(uri.rpartition(":")[2])), TIMEOUT, source_address=(host, 0))
    sock.settimeout(TIMEOUT)
    return sock


def until_the_end(sock: socket.socket) -> bytes:
    """Return what comes until the receiver has closed the connection."""
    seen = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(1 << 14):
            seen += piece
    return seen


def is_plain(sock: socket.socket) -> None:
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")


def stops_half_way(sock: socket.socket) -> None:
    sock.sendall(hello())
    sock.shutdown(socket.SHUT_WR)


def breaks_tls(sock: socket.socket) -> None:
    sock.sendall(b"\x16\3\1\xff\xff" + bytes(100))


def has_another_token(sock: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    token.take(context, token.Token(bytes(32), bytes(32)))
    with contextlib.suppress(OSError), context.wrap_socket(sock.dup(), suppress_ragged_eofs=False) as secured:
        while secured.recv(1):
            pass


TRIES: list[Callable[[socket.socket], None]] = [is_plain, stops_half_way, breaks_tls, has_another_token]


def fail(uri: str, times: int, how: Callable[[socket.socket], None] = breaks_tls, host: str = STRANGER) -> None:
    for _ in range(times):
        with connected(uri, host) as sock:
            how(sock)
            until_the_end(sock)


@pytest.fixture
def for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whoever must wait do so for longer than any test."""
    monkeypatch.setattr(refusals, "FIRST_SECONDS", 1e6)
    monkeypatch.setattr(refusals, "MOST_SECONDS", 1e6)


def send(receiver: lab.Receiver, content: bytes, **chosen: object) -> None:
    trust = blkmig.TlsParameters(token=receiver.migration.token)
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    parameters = blkmig.MigrationParameters(tls=trust, **chosen)  # type: ignore[arg-type]
    with blkmig.outgoing([disk], tls_links.named(receiver.uri), parameters) as migration:
        migration.run()


@pytest.mark.usefixtures("for_ever")
@pytest.mark.parametrize("how", TRIES)
def test_the_sender_elsewhere_does_not_wait(tmp_path: Path, how: Callable[[socket.socket], None]) -> None:
    """And the stranger is not heard any more: what he says is not read."""
    content = random.Random(1).randbytes(MIB)
    receiver = lab.Receiver("tls:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    fail(receiver.uri, 2, how)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(receiver.uri)) for _ in range(3 * accepting.MAX_PER_ADDRESS)]
        for sock in held:
            with contextlib.suppress(ConnectionError):
                sock.sendall(hello())
        send(receiver, content)
        result = receiver.result()
        assert [until_the_end(sock) for sock in held] == [b""] * len(held)
    assert (tmp_path / "t.raw").read_bytes() == content
    assert result.notes[0].startswith(f"2 connections could not prove to be the sender's, the last one from {STRANGER}")


@pytest.mark.usefixtures("for_ever")
@pytest.mark.parametrize("how", TRIES)
def test_one_mistake_is_free(tmp_path: Path, how: Callable[[socket.socket], None]) -> None:
    receiver = lab.Receiver("tls:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    fail(receiver.uri, 1, how, SENDER)
    send(receiver, b"x" * MIB)
    assert receiver.result().notes[0].startswith("1 connection could not")


def test_the_sender_at_the_same_address_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of tries; over several connections, too."""
    monkeypatch.setattr(refusals, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(refusals, "MOST_SECONDS", 0.02)
    content = random.Random(2).randbytes(2 * MIB)
    receiver = lab.Receiver("tls:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    fail(receiver.uri, 20, breaks_tls, SENDER)
    send(receiver, content, connections=3)
    assert receiver.result().notes[0].startswith("20 connections could not")
    assert (tmp_path / "t.raw").read_bytes() == content


@pytest.mark.usefixtures("for_ever")
def test_the_other_connections_of_who_has_proved_it_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first one has to, because of others at the same address; here its time has come at once."""
    receiver = lab.Receiver("tls:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    fail(receiver.uri, 2, breaks_tls, SENDER)
    waits: list[float] = []
    original = refusals.Refusals.seconds

    def seconds(self: refusals.Refusals, host: str) -> float:
        waits.append(original(self, host))
        return 0.0

    monkeypatch.setattr(refusals.Refusals, "seconds", seconds)
    send(receiver, b"x" * MIB, connections=3)
    receiver.result()
    assert [bool(wait) for wait in waits] == [True, False, False]


@pytest.mark.usefixtures("for_ever")
def test_who_only_looks_whether_somebody_listens_has_not_failed(tmp_path: Path) -> None:
    """As programs do that watch over services."""
    receiver = lab.Receiver("tls:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    for _ in range(5):
        with connected(receiver.uri, SENDER) as sock:
            sock.shutdown(socket.SHUT_WR)
            until_the_end(sock)
    send(receiver, b"x" * MIB)
    assert receiver.result().notes == []


@pytest.mark.usefixtures("for_ever")
def test_a_flood_of_half_handshakes_is_not_answered_for_ever(tmp_path: Path) -> None:
    """Each makes room for the next one of its address, which is held."""
    receiver = lab.Receiver("tls:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    answered = 0
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(receiver.uri)) for _ in range(accepting.MAX_PER_ADDRESS)]
        for sock in socks:
            sock.sendall(hello())
            assert sock.recv(1) == b"\x16"
        for _ in range(20):
            sock = stack.enter_context(connected(receiver.uri))
            with contextlib.suppress(ConnectionError):
                sock.sendall(hello())
            socks.append(sock)
        send(receiver, b"x" * MIB)
        receiver.result()
        answered = sum(bool(until_the_end(sock)) for sock in socks[accepting.MAX_PER_ADDRESS :])
    assert answered <= 2


def test_nobody_came_who_may(tmp_path: Path) -> None:
    with channel.listen("tls:127.0.0.1:0") as listener:
        with connected(listener.uri) as sock:
            is_plain(sock)
            with pytest.raises(errors.ChannelTimeout, match="and 1 did that could not prove that they may"):
                listener.accept(timeout=1.0)
