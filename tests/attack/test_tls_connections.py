# SPDX-License-Identifier: GPL-2.0-or-later
"""Several connections over TLS with a token: all are those of who has begun, whoever comes, and whatever is cut."""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cutter
import lab
import pytest
import tls_links
from lossy import Lossy, many_barriers, random_cuts
from tls_links import TIMEOUT, Between

import blkmig
from blkmig import channel, errors, savevm, stats
from blkmig.channel import token
from blkmig.migration import bundling, connection, gathering

pytest.importorskip("cryptography", reason="a token needs the package cryptography")

MIB = lab.MIB
__all__ = ["many_barriers"]


def send(uri: str, said: str, content: bytes, **chosen: object) -> stats.OutgoingStatistics:
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    chosen = {"connections": 3, **chosen}
    parameters = blkmig.MigrationParameters(tls=blkmig.TlsParameters(token=said), **chosen)  # type: ignore[arg-type]
    with blkmig.outgoing([disk], tls_links.named(uri), parameters) as migration:
        migration.run()
    return migration.stats


def receiver_of(folder: Path) -> lab.Receiver:
    return lab.Receiver("tls:127.0.0.1:0", {"d": folder / "t.raw"})


@contextlib.contextmanager
def as_sender(uri: str, said: str) -> Iterator[ssl.SSLSocket]:
    """Connect as whoever has a token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    token.take(context, token.Token.parse(said))
    with socket.create_connection(("127.0.0.1", int(uri.rpartition(":")[2])), TIMEOUT) as sock:
        with context.wrap_socket(sock) as secured:
            yield secured


def is_refused(secured: ssl.SSLSocket) -> bool:
    """Return whether nothing but ERROR is said, which says why, and the connection ends."""
    said = b""
    try:
        while piece := secured.recv(1 << 12):
            said += piece
    except TimeoutError:
        return False
    except OSError:
        pass
    return not said or said.startswith(savevm.last_words(0, savevm.Failure("", 0))[:2])


@pytest.mark.parametrize("reconnect", [None, 0])
@pytest.mark.parametrize("count", [2, 5, 16])
def test_over_several(tmp_path: Path, count: int, reconnect: float | None) -> None:
    """More than the receiver waits for of one address: each is there before the next one comes."""
    content = random.Random(count).randbytes(5 * MIB + 1536)
    receiver = receiver_of(tmp_path)
    result = send(receiver.uri, receiver.migration.token, content, connections=count, reconnect=reconnect)
    assert receiver.result().notes == []
    assert (result.connections, result.notes) == (count, [])
    assert (tmp_path / "t.raw").read_bytes() == content


Words = Callable[[savevm.Bundle], bytes]
WRONG: dict[str, Words] = {
    "another bundle": lambda bundle: savevm.Bundle(bytes(16), bundle.connections).preface(1),
    "a migration of its own": lambda bundle: b"QEVM\0\0\0\3" + bytes(64),
    "another session": lambda bundle: savevm.AGAIN_MAGIC + bytes(64),
    "the first one": lambda bundle: bundle.preface(0),
    "nothing": lambda bundle: b"",
}


@pytest.fixture
def bundles(monkeypatch: pytest.MonkeyPatch) -> list[savevm.Bundle]:
    """Return those that are asked for."""
    asked: list[savevm.Bundle] = []
    encode = savevm.Bundle.encode

    def note(self: savevm.Bundle) -> bytes:
        asked.append(self)
        return encode(self)

    monkeypatch.setattr(savevm.Bundle, "encode", note)
    return asked


def before_each(monkeypatch: pytest.MonkeyPatch, stranger: Callable[[], None]) -> None:
    """Have somebody come before each connection but the first one."""
    original = connection.Connection.open_another

    def open_another(self: connection.Connection, *, timeout: float) -> channel.OutputQEMUFile:
        stranger()
        return original(self, timeout=timeout)

    monkeypatch.setattr(connection.Connection, "open_another", open_another)


@pytest.mark.parametrize("reconnect", [None, 0])
@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_who_has_the_token_and_not_the_session(
    tmp_path: Path,
    words: Words,
    reconnect: float | None,
    bundles: list[savevm.Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = random.Random(1).randbytes(3 * MIB)
    receiver = receiver_of(tmp_path)
    said = receiver.migration.token
    with contextlib.ExitStack() as stack:
        strangers: list[ssl.SSLSocket] = []

        def stranger() -> None:
            strangers.append(stack.enter_context(as_sender(receiver.uri, said)))
            strangers[-1].sendall(words(bundles[0]))

        before_each(monkeypatch, stranger)
        result = send(receiver.uri, said, content, reconnect=reconnect)
        receiver.result()
        assert (result.connections, result.notes) == (3, [])
        assert [is_refused(secured) for secured in strangers] == [True, True]
    assert (tmp_path / "t.raw").read_bytes() == content


@pytest.mark.parametrize("reconnect", [None, 0])
def test_who_has_seen_the_first_one_has_nothing(
    tmp_path: Path, reconnect: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the sender has said on its first connection, once more; and no token, or another one."""
    content = random.Random(2).randbytes(3 * MIB)
    receiver = receiver_of(tmp_path)
    said = receiver.migration.token
    with Between(receiver.uri) as between, contextlib.ExitStack() as stack:
        strangers: list[socket.socket] = []

        def stranger() -> None:
            sock = socket.create_connection(("127.0.0.1", int(receiver.uri.rpartition(":")[2])), TIMEOUT)
            strangers.append(stack.enter_context(sock))
            sock.sendall(between.passed)
            with contextlib.suppress(OSError), as_sender(receiver.uri, token.Token(bytes(32), bytes(32)).text()) as bad:
                bad.recv(1)

        before_each(monkeypatch, stranger)
        result = send(between.uri, said, content, reconnect=reconnect)
        notes = receiver.result().notes
        assert (result.connections, result.notes) == (3, [])
        for sock in strangers:
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 14):
                    pass
    assert notes[0].startswith("4 connections could not prove to be the sender's")
    assert (tmp_path / "t.raw").read_bytes() == content


def test_after_the_end_nobody_is_there(tmp_path: Path) -> None:
    """And a receiver that is started again takes neither the token nor what was recorded."""
    content = random.Random(3).randbytes(MIB)
    receiver = receiver_of(tmp_path)
    said = receiver.migration.token
    with Between(receiver.uri) as between:
        send(between.uri, said, content)
        receiver.result()
    with pytest.raises(errors.ChannelError):
        channel.connect(receiver.uri, timeout=TIMEOUT, tls=blkmig.TlsParameters(token=said))
    again = lab.Receiver(receiver.uri, {"d": tmp_path / "u.raw"})
    with pytest.raises(errors.ChannelError, match="not the receiver that has made the token"):
        send(again.uri, said, content)
    with socket.create_connection(("127.0.0.1", int(again.uri.rpartition(":")[2])), TIMEOUT) as sock:
        sock.sendall(between.passed)
        with contextlib.suppress(ConnectionError):
            while sock.recv(1 << 14):
                pass
    send(again.uri, again.migration.token, content)
    again.result()
    assert (tmp_path / "u.raw").read_bytes() == content


@contextlib.contextmanager
def in_the_middle(uri: str) -> Iterator[tuple[str, list[bytes]]]:
    """Pass on the first connection, and end TLS on the second one oneself; yield where, and what is heard."""
    heard: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    token.offer(context, bytes(token.SECRET_NBYTES))
    context.verify_mode = ssl.CERT_NONE
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        near = server.accept()[0]
        far = socket.create_connection(("127.0.0.1", int(uri.rpartition(":")[2])))
        for ends in ((near, far), (far, near)):
            threading.Thread(target=tls_links.pass_on, args=ends, daemon=True).start()
        with server.accept()[0] as second, contextlib.suppress(OSError):
            with context.wrap_socket(second, server_side=True) as secured:
                while piece := secured.recv(1 << 14):
                    heard.append(piece)

    with server, concurrent.futures.ThreadPoolExecutor() as pool:
        done = pool.submit(run)
        yield f"tls:localhost:{server.getsockname()[1]}", heard
        done.result(TIMEOUT)


@pytest.mark.parametrize("reconnect", [None, 0])
def test_somebody_between_on_the_second_one(
    tmp_path: Path, reconnect: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hears nothing, and the stream goes over the connection that is that of the receiver."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 0.3)
    content = random.Random(4).randbytes(3 * MIB)
    receiver = receiver_of(tmp_path)
    with in_the_middle(receiver.uri) as (uri, heard):
        result = send(uri, receiver.migration.token, content, reconnect=reconnect)
        receiver.result()
    assert heard == []
    assert result.connections == 1
    assert "not the receiver that has made the token" in result.notes[0]
    assert (tmp_path / "t.raw").read_bytes() == content


@pytest.mark.parametrize("reconnect", [None, 0])
@pytest.mark.parametrize("nbytes", [0, 100, 700])
def test_a_handshake_that_stalls(
    tmp_path: Path, nbytes: int, reconnect: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream stays on the connection that it has."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 0.5)
    monkeypatch.setattr(bundling, "OPEN_SECONDS", 0.5)
    content = random.Random(5).randbytes(3 * MIB)
    receiver = receiver_of(tmp_path)
    cuts: list[tuple[int, cutter.How]] = [(1 << 60, "reset"), (nbytes, "silence")]
    with cutter.Cutter(receiver.uri, cuts) as relay:
        result = send(relay.uri, receiver.migration.token, content, reconnect=reconnect)
        receiver.result()
    assert (result.connections, result.reconnects) == (1, 0)
    assert result.notes[0].startswith("the stream goes over one connection, not 3")
    assert (tmp_path / "t.raw").read_bytes() == content


@pytest.mark.parametrize("last", [6, 7, 9, 14])
def test_the_second_one_is_cut_between_two_records(tmp_path: Path, last: int) -> None:
    """Which is a loss, never an end: behind its first words, or in the middle of what it carries."""
    content = random.Random(6).randbytes(4 * MIB)
    receiver = receiver_of(tmp_path)
    cut: tls_links.Change = lambda number, record: None if number >= last else record  # noqa: E731
    with Between(receiver.uri, cut, which=1) as between:
        with pytest.raises(errors.MigrationError):
            send(between.uri, receiver.migration.token, content, connections=2, reconnect=0)
        with pytest.raises(errors.MigrationError):
            receiver.result()
        assert between.records == last
    assert not (tmp_path / "t.raw").exists()


@pytest.mark.parametrize("where", [0, 6, -1])
def test_a_record_of_the_second_one_is_changed(tmp_path: Path, where: int) -> None:
    def change(number: int, record: bytes) -> bytes:
        changed = bytearray(record)
        if number == 12:
            changed[where] ^= 1
        return bytes(changed)

    receiver = receiver_of(tmp_path)
    with Between(receiver.uri, change, which=1) as between:
        content = random.Random(7).randbytes(4 * MIB)
        with pytest.raises(errors.MigrationError):
            send(between.uri, receiver.migration.token, content, connections=2, reconnect=0)
        with pytest.raises(errors.MigrationError):
            receiver.result()
    assert not (tmp_path / "t.raw").exists()


@pytest.mark.usefixtures("many_barriers")
@pytest.mark.parametrize("seed", range(6))
def test_any_of_them_is_lost(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a cut at any byte, also in a handshake: the stream goes on over as many, each of which proves itself again."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 0.3)
    monkeypatch.setattr(bundling, "OPEN_SECONDS", 0.5)
    rng = random.Random(seed)
    cuts = random_cuts(rng, 7, 10 * MIB, "reset", "end", "silence")
    run = Lossy(tmp_path, seed, cuts, 12 * MIB + 1536, connections=4, uri="tls:127.0.0.1:0")
    run.run(is_file=bool(seed % 2), some=True)
