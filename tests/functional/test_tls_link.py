# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream over TLS behaves as one over TCP does: everything arrives, ends are seen, what breaks is an error."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import cutter
import descriptors
import fault_pairs
import lab
import peers
import pytest
import tls
import tls_links
from everything import check_everything, put_everything
from tls_links import TIMEOUT, trusting

import blkmig
from blkmig import _core, channel, errors

peers.require("openssl")

BLK = _core.BlockBuffer()
BLK.data[:] = bytes(range(256)) * 4096
BLK.filled(_core.BLOCK_SIZE)

Pair = tuple[channel.OutputQEMUFile, channel.InputQEMUFile]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificates(tmp_path_factory.mktemp("tls") / "pki", host="localhost")


@pytest.fixture
def pair(certificates: Path) -> Iterator[Pair]:
    with tls_links.pair(certificates) as both:
        yield both


def put_for_ever(f: channel.OutputQEMUFile) -> None:
    while True:
        f.put_block(0, _core.FLAG_DEVICE_BLOCK, b"x", BLK)


@pytest.mark.parametrize("limit", [0, 100 << 20])
def test_everything_arrives_both_ways(pair: Pair, limit: int) -> None:
    f, peer = pair
    f.set_rate_limit(limit)
    there, back = peer.return_path(), f.return_path()
    assert there is not None
    assert back is not None
    for sender, receiver in ((f, peer), (there, back)):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            got = pool.submit(check_everything, receiver)
            nbytes = put_everything(sender)
            sender.flush()
            assert got.result(TIMEOUT) == nbytes


def test_an_answer_that_cannot_be_sent_ends_the_link(pair: Pair) -> None:
    fault_pairs.fail_to_answer(*pair)


def test_the_return_path_outlives_the_stream(pair: Pair) -> None:
    f, peer = pair
    back, there = f.return_path(), peer.return_path()
    assert back is not None
    assert there is not None
    f.put_be64(1)
    f.close()
    assert peer.get_be64() == 1
    assert peer.at_eof()
    assert peer.get_some(1) == b""
    peer.close()
    there.put_be32(2)
    there.wait_until_taken()
    there.close()
    assert back.get_be32() == 2
    assert back.at_eof()


def test_what_was_put_before_the_end_arrives_although_nobody_answers(pair: Pair) -> None:
    """When close() returns, everything is the system's: this process may end then."""
    f, peer = pair
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reading = pool.submit(peer.skip, 16 << 20)
        for _ in range(16):
            f.put_buffer(BLK.data)
        f.close()
        reading.result(TIMEOUT)
    assert peer.at_eof()


def test_pages_do_not_pass(pair: Pair) -> None:
    f, _ = pair
    assert f.return_path() is not None
    assert not f.takes_pages
    assert not f.share_pages()
    assert f.is_local


def test_a_sender_that_gives_up_is_no_end(pair: Pair) -> None:
    f, peer = pair
    f.put_be64(1)
    f.flush()
    assert peer.get_be64() == 1
    f.abort()
    with pytest.raises(errors.ChannelError, match="Connection reset"):
        peer.at_eof()
    with pytest.raises(errors.ChannelError):
        peer.get_some(1)


def test_nothing_leaves_after_a_sender_gave_up(certificates: Path) -> None:
    """What was put and has not left is dropped: when abort() returns, nobody gets it any more."""
    trust = trusting(certificates)
    with channel.listen("tls:127.0.0.1:0", tls=trust) as listener, tls_links.Between(listener.uri) as between:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            accepted = pool.submit(lambda: listener.accept(timeout=TIMEOUT))
            f = channel.connect(between.uri, timeout=TIMEOUT, tls=trust)
            peer = accepted.result(TIMEOUT)
            between.may_read.clear()
            f.set_idle_timeout(0.2)
            with pytest.raises(errors.ChannelTimeout, match=r"took nothing for 0.2 s \(--idle-timeout\)"):
                put_for_ever(f)
            f.abort()
            between.may_read.set()
            got = 0
            with contextlib.suppress(errors.MigrationError):
                while piece := peer.get_some(1 << 20):
                    got += len(piece)
            assert got < f.transferred, "all of it has come, although it was given up"
            peer.abort()


def test_a_peer_that_has_gone(pair: Pair) -> None:
    f, peer = pair
    peer.abort()
    with pytest.raises(errors.ChannelError, match="sending at byte"):
        put_for_ever(f)


def test_the_word_is_taken_when_the_peers_machine_has_it(certificates: Path) -> None:
    trust = trusting(certificates)
    with channel.listen("tls:127.0.0.1:0", tls=trust) as listener, tls_links.Between(listener.uri) as between:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            accepted = pool.submit(lambda: listener.accept(timeout=TIMEOUT))
            f = channel.connect(between.uri, timeout=TIMEOUT, tls=trust)
            peer = accepted.result(TIMEOUT)
            f.put_be64(1)
            f.wait_until_taken()
            between.may_read.clear()
            f.set_idle_timeout(0.2)
            with pytest.raises(errors.ChannelTimeout):
                put_for_ever(f)
            f.abort()
            peer.abort()


def test_a_word_that_the_peers_machine_does_not_take(certificates: Path) -> None:
    """It stands in the socket, and is not taken."""
    trust = trusting(certificates)
    for nbytes in (1 << 16, 2 << 20, 8 << 20):
        with channel.listen("tls:127.0.0.1:0", tls=trust) as listener, concurrent.futures.ThreadPoolExecutor() as pool:
            accepted = pool.submit(lambda: listener.accept(timeout=TIMEOUT))
            f = channel.connect(tls_links.named(listener.uri), timeout=TIMEOUT, tls=trust)
            peer = accepted.result(TIMEOUT)
            f.set_idle_timeout(0.2)
            try:
                f.put_buffer(bytes(nbytes))
                f.wait_until_taken()
            except errors.ChannelTimeout:
                break
            finally:
                f.abort()
                peer.abort()
    else:
        pytest.fail("8 MiB are said to be taken, and nobody has read a byte")


@pytest.mark.parametrize("call", ["get_byte", "at_eof"])
def test_an_idle_peer(pair: Pair, call: str) -> None:
    _, peer = pair
    peer.set_idle_timeout(0.05, first=0.05)
    with pytest.raises(errors.ChannelTimeout, match=r"nothing came within 0\.05 s"):
        getattr(peer, call)()


def test_a_socket_that_does_not_hang_on_to_its_process(pair: Pair) -> None:
    """A forked child has none of it, and may end without a word."""
    f, peer = pair
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            f.abort()
        os._exit(0)
    os.waitpid(child, 0)
    f.put_be64(1)
    f.close()
    assert peer.get_be64() == 1
    assert peer.at_eof()


def test_descriptors_and_threads_are_given_back(certificates: Path) -> None:
    with tls_links.pair(certificates):
        pass  # what is made once in a process
    threads = threading.active_count()
    with descriptors.given_back():
        for ends in ("close", "abort"):
            with tls_links.pair(certificates) as (f, peer):
                back, there = f.return_path(), peer.return_path()
                assert back is not None
                assert there is not None
                for file in (f, peer, back, there):
                    getattr(file, ends)()
    assert threading.active_count() == threads


def test_tcp_gives_up_later_than_the_idle_timeout(pair: Pair) -> None:
    f, _ = pair
    f.set_idle_timeout(500)
    with descriptors.socket_to(f.uri.replace("tls:localhost", "tcp:127.0.0.1")) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 560_000


def test_a_link_over_tls_is_sealed(certificates: Path) -> None:
    """So it needs no checksums of payloads."""
    with tls_links.pair(certificates) as (f, _), channel.connect("exec:cat >/dev/null", timeout=TIMEOUT) as plain:
        assert f.is_sealed
        assert not plain.is_sealed


@pytest.mark.parametrize("connections", [1, 3])
def test_who_is_trusted_is_said_once(certificates: Path, tmp_path: Path, connections: int) -> None:
    """Files that go away meanwhile, or are replaced, end nothing: other connections, and later ones, need none."""
    mine = shutil.copytree(certificates, tmp_path / "pki")
    content = os.urandom(8 << 20)
    receiver = lab.Receiver("tls:localhost:0", {"d": tmp_path / "t.raw"}, tls=trusting(certificates))
    with cutter.Cutter(receiver.uri.replace("[::1]", "127.0.0.1"), [(1 << 20, "reset")]) as relay:
        parameters = blkmig.MigrationParameters(tls=trusting(mine), connections=connections)
        disk = blkmig.MemoryBackend(bytearray(content), name="d")
        with blkmig.outgoing([disk], tls_links.named(relay.uri), parameters) as migration:
            shutil.rmtree(mine)
            migration.run()
        receiver.result()
    assert (migration.stats.connections, migration.stats.reconnects) == (connections, 1)
    assert (tmp_path / "t.raw").read_bytes() == content


@pytest.mark.parametrize("reconnect", [None, 0])
def test_a_disk_over_several(certificates: Path, tmp_path: Path, reconnect: float | None) -> None:
    """Each connection has a handshake of its own; what is lost of one is lost of all."""
    content = os.urandom(5 << 20)
    chosen = blkmig.IncomingParameters(tls=trusting(certificates))
    with blkmig.incoming("tls:localhost:0", {"d": tmp_path / "t.raw"}, chosen) as incoming:
        loading = threading.Thread(target=incoming.run)
        loading.start()
        parameters = blkmig.MigrationParameters(tls=trusting(certificates), connections=4, reconnect=reconnect)
        disk = blkmig.MemoryBackend(bytearray(content), name="d")
        with blkmig.outgoing([disk], tls_links.named(incoming.uri), parameters) as migration:
            migration.run()
        loading.join(TIMEOUT)
    assert (migration.stats.connections, migration.stats.notes) == (4, [])
    assert (tmp_path / "t.raw").read_bytes() == content
