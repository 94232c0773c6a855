# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is trusted over ``tls:``, who is not, and what each end says of it; whoever is refused keeps nobody else out."""

from __future__ import annotations

import concurrent.futures
import logging
import random
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import peers
import pytest
import tls
import tls_links
from tls_links import TIMEOUT, receiving, trusting

import blkmig
from blkmig import channel, errors

peers.require("openssl")

MIB = 1 << 20
PAST = ("20200101000000Z", "20200201000000Z")
FUTURE = ("20900101000000Z", "20910101000000Z")


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificates(tmp_path_factory.mktemp("right") / "pki", host="localhost")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return certificates of another authority."""
    return tls.make_certificates(tmp_path_factory.mktemp("other") / "pki", host="localhost")


@pytest.fixture(scope="module")
def signed(right: Path) -> Callable[[str], Path]:
    """Return what makes certificates of the right authority that are wrong in one thing."""
    made: dict[str, Path] = {}

    def sign(what: str) -> Path:
        if what not in made:
            start, end = {"past": PAST, "future": FUTURE, "name": (PAST[0], FUTURE[1])}[what]
            host = "example.org" if what == "name" else "localhost"
            made[what] = tls.sign(right, what, f"/CN={what}", host=host, start=start, end=end)
        return made[what]

    return sign


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "d.raw").write_bytes(random.Random(1).randbytes(3 * MIB + 512))
    return tmp_path / "d.raw"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING):
        yield caplog


@pytest.mark.parametrize("parameters", [{}, {"return_path": False}, {"digests": True}, {"format": "block"}])
def test_a_disk_arrives(right: Path, source: Path, tmp_path: Path, parameters: dict[str, object]) -> None:
    trust = trusting(right)
    with receiving(tmp_path / "copy.raw", trust, verify="digests" in parameters) as (uri, running):
        sent = blkmig.send([source], uri, tls=trust, **parameters)
        assert running.result(TIMEOUT)
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()
    assert sent.format == ("blkmig" if parameters.keys() <= {"digests"} else "block")


def test_a_disk_moves(right: Path, source: Path, tmp_path: Path) -> None:
    trust = trusting(right)
    with receiving(tmp_path / "copy.raw", trust) as (uri, running):
        blkmig.send([source], uri, tls=trust, writers_after="refuse", max_bandwidth="64M")
        assert running.result(TIMEOUT)
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


SENDERS = {
    "no certificate": ("this end has shown none", "has shown no certificate"),
    "another authority": ("does not trust the authority", "not accepted: unable to get local issuer"),
    "expired": ("certificate has expired", "not accepted: certificate has expired"),
    "not yet valid": ("does not accept this end's", "not accepted: certificate is not yet valid"),
    "does not trust the receiver": ("not accepted: .*certificate", "does not trust the authority"),
    "another name": ("Hostname mismatch.*--tls-hostname", "does not accept this end's certificate"),
}


@pytest.mark.parametrize("who", SENDERS)
def test_a_sender_who_is_refused(
    who: str, right: Path, other: Path, signed: Callable[[str], Path], source: Path, tmp_path: Path,
    said: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Each end says why, and the next sender is served."""
    authority = right / "ca-cert.pem"
    wrong = {
        "no certificate": lambda: blkmig.TlsParameters(authority=authority),
        "another authority": lambda: trusting(other, authority=authority),
        "expired": lambda: trusting(signed("past")),
        "not yet valid": lambda: trusting(signed("future")),
        "does not trust the receiver": lambda: trusting(other),
        "another name": lambda: trusting(right, hostname="example.org"),
    }[who]()
    here, there = SENDERS[who]
    with receiving(tmp_path / "copy.raw", trusting(right)) as (uri, running):
        with pytest.raises(errors.ChannelError, match=here):
            blkmig.send([source], uri, tls=wrong)
        assert not (tmp_path / "copy.raw").exists()
        blkmig.send([source], uri, tls=trusting(right))
        assert running.result(TIMEOUT)
    assert re.search(there, said.text), said.text
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("what", "message"),
    [("past", "certificate has expired"), ("future", "certificate is not yet valid"), ("name", "Hostname mismatch")],
)
def test_a_receiver_who_is_refused(
    what: str, message: str, right: Path, signed: Callable[[str], Path], source: Path, tmp_path: Path
) -> None:
    with receiving(tmp_path / "copy.raw", trusting(signed(what))) as (uri, _):
        with pytest.raises(errors.ChannelError, match=f"not accepted: .*{message}"):
            blkmig.send([source], uri, tls=trusting(right))


def test_another_name_that_is_said(right: Path, signed: Callable[[str], Path], source: Path, tmp_path: Path) -> None:
    with receiving(tmp_path / "copy.raw", trusting(signed("name"))) as (uri, running):
        blkmig.send([source], uri, tls=trusting(right, hostname="example.org"))
        assert running.result(TIMEOUT)


def test_a_peer_that_is_not_allowed(
    right: Path, signed: Callable[[str], Path], source: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    only = trusting(right, allowed_peers=["EXAMPLE.org", "somebody"])
    with receiving(tmp_path / "copy.raw", only) as (uri, running):
        with pytest.raises(errors.MigrationError):
            blkmig.send([source], uri, tls=trusting(right))
        assert "is that of client, who is not allowed (--allow-peer)" in said.text
        blkmig.send([source], uri, tls=trusting(signed("name"), authority=right / "ca-cert.pem"))
        assert running.result(TIMEOUT)


@pytest.mark.parametrize("minimum", ["1.2", "1.3"])
def test_an_older_tls_only_where_it_was_asked_for(
    minimum: str, right: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    """A downgrade ends the handshake; what 1.2 may have is an AEAD cipher."""
    context = ssl.create_default_context(cafile=str(right / "ca-cert.pem"))
    context.load_cert_chain(right / "client-cert.pem", right / "client-key.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with receiving(tmp_path / "copy.raw", trusting(right, minimum=minimum)) as (uri, _):
        with socket.create_connection(("localhost", int(uri.rpartition(":")[2]))) as sock:
            if minimum == "1.2":
                with context.wrap_socket(sock, server_hostname="localhost") as secured:
                    cipher = secured.cipher()
                    assert cipher is not None
                    assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]
                return
            with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
                context.wrap_socket(sock, server_hostname="localhost")
    assert "no version of TLS in common: see --tls-min" in said.text


def test_a_plain_sender_at_a_port_of_tls(
    right: Path, source: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    with receiving(tmp_path / "copy.raw", trusting(right)) as (uri, running):
        with pytest.raises(errors.MigrationError, match="the target speaks TLS: say tls:HOST:PORT"):
            blkmig.send([source], uri.replace("tls:", "tcp:"))
        assert "it speaks no TLS, it starts with 51 45 56 4d" in said.text
        blkmig.send([source], uri, tls=trusting(right))
        assert running.result(TIMEOUT)


def test_a_sender_of_tls_at_a_plain_port(
    right: Path, source: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    with blkmig.IncomingMigration("tcp:127.0.0.1:0", {"d": tmp_path / "copy.raw"}) as incoming:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(incoming.run)
            uri = tls_links.named(incoming.uri)
            with pytest.raises(errors.ChannelError, match=r"TLS handshake: .*it speaks no TLS"):
                blkmig.send([source], uri.replace("tcp:", "tls:"), tls=trusting(right))
            assert "it begins TLS, and this receiver listens for a plain stream: say tls: here" in said.text
            blkmig.send([source], uri)
            assert running.result(TIMEOUT)


@pytest.mark.parametrize("answer", [b"", b"220 mail.example.org ESMTP\r\n"])
def test_something_else_that_listens_there(answer: bytes, right: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve() -> None:
            with server.accept()[0] as sock:
                sock.recv(1)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(errors.ChannelError, match=r"TLS handshake: .*speaks no TLS"):
            channel.connect(f"tls:localhost:{server.getsockname()[1]}", timeout=TIMEOUT, tls=trusting(right))
        thread.join()


def test_somebody_who_never_answers(right: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"tls:localhost:{server.getsockname()[1]}"
        with pytest.raises(errors.ChannelTimeout, match="TLS handshake: the other end has not finished it in time"):
            channel.connect(where, timeout=0.2, tls=trusting(right))


def test_a_link_of_tls_is_not_measured(right: Path, tmp_path: Path) -> None:
    """Nor can a stranger ask whether somebody waits there."""
    with receiving(tmp_path / "copy.raw", trusting(right)) as (uri, _):
        with pytest.raises(channel.NotMeasured, match="cannot be measured"):
            channel.measure(uri, timeout=1)
        with pytest.raises(channel.NotMeasured, match="no receiver that can be measured answers"):
            channel.measure(uri.replace("tls:", "tcp:"), timeout=1)
