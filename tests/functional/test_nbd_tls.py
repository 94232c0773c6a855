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
from blkmig.nbd import backend as nbd
from blkmig.nbd import tls as nbd_tls

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


def test_no_authority_is_refused_where_nothing_would_be_verified(
    server: nbd_servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E8: a libnbd before 1.20.2 takes any certificate then; a later one trusts whom the system trusts."""
    with pytest.raises((errors.ParameterError, errors.DeviceError)):
        nbd.NbdBackend(server.uri, writable=False)
    monkeypatch.setattr(nbd_tls, "version_of", lambda library: (1, 14, 2))
    with pytest.raises(errors.ParameterError, match=r"\?tls-certificates=DIR"):
        nbd.NbdBackend(server.uri, writable=False)


@pytest.mark.parametrize("where", ["argument", "URI"])
def test_certificates_that_are_not_there(tmp_path: Path, where: str) -> None:
    """E19: refused before anybody connects."""
    folder = str(tmp_path / "nowhere")
    uri, options = "nbds://localhost:1/", {"tls_certificates": folder}
    if where == "URI":
        uri, options = f"{uri}?tls-certificates={folder}", {}
    with pytest.raises(errors.ParameterError, match="nowhere' is no folder with certificates"):
        nbd.NbdBackend(uri, writable=False, **options)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no ca-cert.pem"),
        (["client-cert.pem", "client-key.pem"], "no ca-cert.pem"),
        (["ca-cert.pem", "client-cert.pem"], "no client-key.pem"),
        (["ca-cert.pem", "client-key.pem"], "no client-cert.pem"),
    ],
)
def test_folders_that_lack_something(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(errors.ParameterError, match=message):
        nbd_tls.check("nbds://host/", certificates=str(tmp_path), version=(1, 14, 2))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "ca-cert.pem").symlink_to(tmp_path / "nowhere")
    with pytest.raises(errors.ParameterError, match="no ca-cert"):
        nbd_tls.check("nbds://host/", certificates=str(tmp_path), version=(1, 14, 2))
    with pytest.raises(errors.ParameterError, match="No such file"):
        nbd_tls.check(f"nbds://host/?tls-psk-file={tmp_path}/keys", version=(1, 14, 2))


def test_what_needs_no_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbd_tls.check("nbd://host/", version=(1, 14, 2))
    for version in [(1, 18, 5), (1, 20, 2), (1, 22, 0), (2, 0, 0)]:
        nbd_tls.check("nbds://host/", version=version)
    for version in [(1, 14, 2), (1, 16, 9), (1, 18, 4), (1, 19, 9), (1, 20, 1), (0, 0, 0)]:
        with pytest.raises(errors.ParameterError, match="any server's certificate"):
            nbd_tls.check("nbds://host/", version=version)
    (tmp_path / "ca-cert.pem").touch()
    monkeypatch.setattr(nbd_tls, "usual_folders", lambda: [tmp_path])
    nbd_tls.check("nbds://host/", version=(1, 14, 2))
    nbd_tls.check(f"nbds://host/?tls-certificates={tmp_path}", version=(1, 14, 2))


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
