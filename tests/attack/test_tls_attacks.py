# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody on the way who cuts and changes what passes, and strangers at a port of TLS who stall."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import peers
import pytest
import tls
import tls_links
from receivers import connected
from tls_links import TIMEOUT, Between, hello, receiving, trusting

import blkmig
from blkmig import errors
from blkmig.channel import accepting

peers.require("openssl")

MIB = 1 << 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificates(tmp_path_factory.mktemp("tls") / "pki", host="localhost")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "d.raw").write_bytes(random.Random(1).randbytes(MIB))
    return tmp_path / "d.raw"


def send_through(
    change: tls_links.Change, certificates: Path, source: Path, target: Path, **parameters: object
) -> tuple[int, BaseException | None, BaseException | None]:
    """Send by way of somebody; return the records that passed, and what both ends raised."""
    trust = trusting(certificates)
    failed: BaseException | None = None
    with receiving(target, trust, idle_timeout=TIMEOUT) as (uri, running), Between(uri, change) as between:
        try:
            blkmig.send([source], between.uri, tls=trust, reconnect=0, **parameters)
        except errors.MigrationError as error:
            failed = error
        lost = running.exception(TIMEOUT)  # first: a sender that waits for no word ends while records still pass
        return between.records, failed, lost


def cut_before(last: int) -> tls_links.Change:
    return lambda number, record: None if number >= last else record


@pytest.mark.parametrize("return_path", [True, False])
def test_cut_between_any_two_records(
    return_path: bool, certificates: Path, source: Path, tmp_path: Path, is_long: bool
) -> None:
    """Each cut before the stream's end is a loss at the receiver, and, where it waits for the word, at the sender."""
    whole, failed, lost = send_through(
        cut_before(1 << 30), certificates, source, tmp_path / "whole.raw", return_path=return_path
    )
    assert failed is lost is None
    # The sender's first records are those of the handshake: ClientHello, one for old boxes on the way, certificate, its
    # proof, Finished. Behind a cut between these, and before the stream's header, the receiver goes on to wait.
    cuts = [*range(6, whole - 1)]
    if not is_long:
        cuts = [*cuts[:4], *random.Random(2).sample(cuts[4:-4], 4), *cuts[-4:]]
    for last in cuts:
        target = tmp_path / f"cut-{last}.raw"
        _, failed, lost = send_through(cut_before(last), certificates, source, target, return_path=return_path)
        if lost is None:
            assert last >= whole - 8, f"cut before record {last} of {whole}"
            assert target.read_bytes() == source.read_bytes(), "the stream's end had passed"
            continue
        assert isinstance(lost, errors.MigrationError)
        assert not target.exists(), f"cut before record {last} of {whole}"
        assert failed is not None or not return_path


@pytest.mark.parametrize("where", [0, 6, -1])
def test_a_changed_record_is_a_loss(where: int, certificates: Path, source: Path, tmp_path: Path) -> None:
    """A byte of it, or of the check at its end."""

    def change(number: int, record: bytes) -> bytes:
        changed = bytearray(record)
        if number == 20:
            changed[where] ^= 1
        return bytes(changed)

    _, failed, lost = send_through(change, certificates, source, tmp_path / "copy.raw")
    assert isinstance(failed, errors.ChannelError)
    assert isinstance(lost, errors.ChannelError)
    assert not (tmp_path / "copy.raw").exists()
    if where == -1:
        assert "what came was changed on its way" in str(lost)


def test_a_record_that_comes_twice(certificates: Path, source: Path, tmp_path: Path) -> None:
    def twice(number: int, record: bytes) -> bytes:
        return record * 2 if number == 20 else record

    _, _, lost = send_through(twice, certificates, source, tmp_path / "copy.raw")
    assert isinstance(lost, errors.ChannelError)
    assert "what came was changed on its way" in str(lost)
    assert not (tmp_path / "copy.raw").exists()


STALLS: list[Callable[[], bytes]] = [
    lambda: b"",
    lambda: hello()[:20],
    hello,
    lambda: hello() + b"\x14\3\3\0\1\1",
    lambda: b"\x16\3\1\xff\xff",
    lambda: b"\x15\3\3\0\2\2\x28",
    lambda: b"GET / HTTP/1.0\r\n\r\n",
    lambda: b"\x16\3\1" + struct.pack(">H", 400) + random.Random(1).randbytes(400),
]


def test_handshakes_that_stall_do_not_keep_the_sender_out(
    certificates: Path, source: Path, tmp_path: Path, is_long: bool
) -> None:
    """Strangers who begin a handshake, or none, and say no more; most of them stay."""
    trust = trusting(certificates)
    count = 1000 if is_long else 5 * accepting.MAX_CANDIDATES
    with receiving(tmp_path / "copy.raw", trust) as (uri, running), contextlib.ExitStack() as stack:
        for number in range(count):
            sock = connected(uri)
            with contextlib.suppress(OSError):
                sock.sendall(STALLS[number % len(STALLS)]())
            if number % 10 == 9 or number < count - 200:
                sock.close()
            else:
                stack.enter_context(sock)
        blkmig.send([source], uri, tls=trust)
        assert running.result(TIMEOUT)
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


def test_who_has_shown_least_makes_room(certificates: Path, tmp_path: Path) -> None:
    """A handshake that has begun stays while others that say nothing come and go."""
    with receiving(tmp_path / "copy.raw", trusting(certificates)) as (uri, _), contextlib.ExitStack() as stack:
        begun = stack.enter_context(connected(uri))
        begun.settimeout(TIMEOUT)
        begun.sendall(hello())
        assert begun.recv(1) == b"\x16", "the receiver's answer"
        for _ in range(3 * accepting.MAX_PER_ADDRESS):
            stack.enter_context(connected(uri))
        last = stack.enter_context(connected(uri))
        last.sendall(b"\x16\3\1\xff\xff" + bytes(100))
        last.settimeout(TIMEOUT)
        with contextlib.suppress(ConnectionError):
            while last.recv(1 << 10):
                pass  # until it is refused: then all before it have been taken
        begun.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while begun.recv(1 << 10):
                pass
            pytest.fail("it was closed")


def test_a_flood_of_empty_records_is_no_stream(certificates: Path, tmp_path: Path) -> None:
    """Whoever is trusted, and says nothing of a disk, is given up."""
    context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    context.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
    with receiving(tmp_path / "copy.raw", trusting(certificates), idle_timeout=0.3) as (uri, running):
        with (
            socket.create_connection(("localhost", int(uri.rpartition(":")[2]))) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as secured,
        ):
            secured.sendall(b"QEVM\0\0\0\3")
            with contextlib.suppress(OSError):
                while not running.done():
                    secured.sendall(b"\7\0\0\0\0\0\0")  # an empty configuration, again and again
        assert isinstance(running.exception(TIMEOUT), errors.MigrationError)
