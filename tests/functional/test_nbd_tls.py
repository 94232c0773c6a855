# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD over TLS: certificates that fit and that do not, and pre-shared keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import nbd_servers
import peers
import pytest
import tls

from blkmig import errors
from blkmig.disk import nbd

peers.require("nbdkit", "openssl")

MiB = 1 << 20


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificates(tmp_path_factory.mktemp("right") / "pki", host="localhost")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificates(tmp_path_factory.mktemp("wrong") / "pki", host="example.org")


@pytest.fixture
def server(right: Path) -> Iterator[nbd_servers.Server]:
    with secured(right) as server:
        yield server


def secured(certificates: Path) -> contextlib.AbstractContextManager[nbd_servers.Server]:
    arguments = ["--tls=require", f"--tls-certificates={certificates}", "--tls-verify-peer", "pattern", "16M"]
    return nbd_servers.nbdkit(*arguments, tcp=True, scheme="nbds")


def test_right_certificates(server: nbd_servers.Server, right: Path) -> None:
    with nbd.NbdBackend(server.uri, writable=False, tls_certificates=str(right)) as disk:
        assert disk.pread(8 * 1000, 8) == (8 * 1000).to_bytes(8, "big")


def test_certificates_in_the_uri(server: nbd_servers.Server, right: Path) -> None:
    with nbd.NbdBackend(f"{server.uri}?tls-certificates={right}", writable=False) as disk:
        assert disk.pread(3 * MiB, 8) == (3 * MiB).to_bytes(8, "big")


def test_server_of_another_name(wrong: Path) -> None:
    """The authority is the right one, the name is not."""
    with secured(wrong) as server, pytest.raises(errors.DeviceError, match=r"(?i)certificate|verif"):
        nbd.NbdBackend(server.uri, writable=False, tls_certificates=str(wrong))


def test_server_of_another_authority(right: Path, wrong: Path) -> None:
    with secured(right) as server, pytest.raises(errors.DeviceError):
        nbd.NbdBackend(server.uri, writable=False, tls_certificates=str(wrong))


def test_no_certificates_for_us(server: nbd_servers.Server) -> None:
    with pytest.raises(errors.DeviceError):
        nbd.NbdBackend(server.uri, writable=False)


def test_certificates_that_are_not_there(server: nbd_servers.Server, tmp_path: Path) -> None:
    with pytest.raises(errors.DeviceError, match="cannot connect"):
        nbd.NbdBackend(server.uri, writable=False, tls_certificates=str(tmp_path / "nowhere"))


def test_tls_is_not_dropped(right: Path) -> None:
    """Neither when the server has none, nor when we say none and the server insists."""
    with nbd_servers.nbdkit("pattern", "16M", tcp=True, scheme="nbds") as plain, pytest.raises(errors.DeviceError):
        nbd.NbdBackend(plain.uri, writable=False, tls_certificates=str(right))
    with secured(right) as server, pytest.raises(errors.DeviceError):
        nbd.NbdBackend(server.uri.replace("nbds", "nbd"), writable=False)


@pytest.mark.parametrize("user", ["alice", "mallory"])
def test_pre_shared_key(tmp_path: Path, user: str) -> None:
    keys = tls.make_psk(tmp_path / "keys.psk", "alice")
    arguments = ["--tls=require", f"--tls-psk={keys}", "pattern", "16M"]
    with nbd_servers.nbdkit(*arguments, scheme="nbds") as server:
        if user == "alice":
            with nbd.NbdBackend(server.uri, writable=False, tls_psk_file=str(keys), tls_username=user) as disk:
                assert disk.pread(80, 8) == (80).to_bytes(8, "big")
            return
        theirs = tls.make_psk(tmp_path / "theirs.psk", user)
        with pytest.raises(errors.DeviceError):
            nbd.NbdBackend(server.uri, writable=False, tls_psk_file=str(theirs), tls_username=user)
