# SPDX-License-Identifier: GPL-2.0-or-later
"""Which certificates are used, and what is said of those that cannot be, before anybody connects or listens."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import peers
import pytest
import tls

import blkmig
from blkmig import channel, errors, pipes
from blkmig.channel import tls as channel_tls
from blkmig.nbd import tls as nbd_tls

peers.require("openssl")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificates(tmp_path_factory.mktemp("tls") / "pki", host="localhost")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"certificates": 3}, "tls.certificates must be a path"),
        ({"key": "a\0b"}, "holds a NUL"),
        ({"hostname": 3}, "tls.hostname must be a text"),
        ({"minimum": "1.1"}, "tls.minimum must be '1.2' or '1.3'"),
        ({"allowed_peers": "name"}, "must be a list of names"),
        ({"allowed_peers": [3]}, "must be a list of names"),
    ],
)
def test_parameters_that_make_no_sense(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ParameterError, match=message):
        blkmig.TlsParameters(**parameters)


@pytest.mark.parametrize("kind", [blkmig.MigrationParameters, blkmig.IncomingParameters])
def test_only_such_parameters(kind: Any) -> None:
    with pytest.raises(errors.WrongType, match="tls must be TlsParameters"):
        kind(tls="/etc/pki")


def listen(folder: Path, **others: Any) -> None:
    channel.listen("tls:127.0.0.1:0", tls=blkmig.TlsParameters(certificates=folder, **others)).close()


def connect(folder: Path, **others: Any) -> None:
    channel.Connector("tls:localhost:1", tls=blkmig.TlsParameters(certificates=folder, **others)).close()


def test_what_is_needed(pki: Path, tmp_path: Path) -> None:
    """Who listens has a certificate; who connects may have none."""
    shutil.copy(pki / "ca-cert.pem", tmp_path)
    connect(tmp_path)
    with pytest.raises(errors.ParameterError, match="who listens must have a certificate and its key"):
        listen(tmp_path)
    listen(tmp_path, certificate=pki / "server-cert.pem", key=pki / "server-key.pem")
    with pytest.raises(errors.ParameterError, match="belong together: say both"):
        listen(tmp_path, certificate=pki / "server-cert.pem")
    shutil.copy(pki / "client-cert.pem", tmp_path)
    with pytest.raises(errors.ParameterError, match=r"there is no client-key\.pem in"):
        connect(tmp_path)
    with pytest.raises(errors.ParameterError, match="is no folder with certificates"):
        connect(tmp_path / "nowhere")
    with pytest.raises(errors.ParameterError, match=r"cannot read .*No such file"):
        connect(pki, authority=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.ParameterError, match="no authority whose certificates are trusted"):
        connect(tmp_path / "empty")


def test_what_is_said_replaces_what_is_in_the_folder(pki: Path, tmp_path: Path) -> None:
    """The folder need not hold the rest of it."""
    parameters = blkmig.TlsParameters(certificates=pki, key=pki / "server-key.pem")
    assert parameters.files("client").key == str(pki / "server-key.pem")
    assert parameters.files("client").certificate == str(pki / "client-cert.pem")


@pytest.mark.parametrize("end", ["client", "server"])
def test_files_that_hold_something_else(end: str, pki: Path, tmp_path: Path) -> None:
    start = connect if end == "client" else listen
    with pytest.raises(errors.ParameterError, match="is not that of the certificate in"):
        start(pki, key=pki / "ca-key.pem")
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(errors.ParameterError, match="holds no certificate of an authority"):
        start(pki, authority=tmp_path / "text")
    with pytest.raises(errors.ParameterError, match="do not hold a certificate and its key"):
        start(pki, key=tmp_path / "text")


def test_a_key_with_a_passphrase_asks_nobody(pki: Path, tmp_path: Path) -> None:
    """And what the error says holds nothing of it."""
    secret = tmp_path / "secret.pem"
    tls.openssl("ec", "-in", pki / "server-key.pem", "-aes256", "-passout", "pass:hush", "-out", secret)
    with pytest.raises(errors.ParameterError, match="needs a passphrase") as caught:
        listen(pki, key=secret)
    assert "hush" not in str(caught.value)
    assert secret.read_text().splitlines()[1] not in repr(caught.value)


@pytest.mark.parametrize("what", ["authority", "certificate", "key"])
def test_files_that_come_through_pipes(what: str, pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by <(pass show key): whoever writes has half a minute."""
    name = {"authority": "ca-cert.pem"}.get(what, f"server-{what.removesuffix('ificate')}.pem")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[(pki / name).read_bytes()])
    writer.start()
    listen(pki, **{what: tmp_path / "pipe"})
    writer.join()
    monkeypatch.setattr(pipes, "SECONDS", 0.01)
    for start in (listen, connect):
        with pytest.raises(errors.ParameterError, match="nobody has written all of it into this pipe"):
            start(pki, **{what: tmp_path / "pipe"})


@pytest.mark.parametrize("name", ["ca-cert.pem", "client-cert.pem", "client-key.pem"])
def test_what_is_no_file_is_not_opened(name: str, pki: Path, tmp_path: Path) -> None:
    """A library would wait for a pipe for ever; a device has no end."""
    folder = tmp_path / "pki"
    shutil.copytree(pki, folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for check in (connect, lambda folder: nbd_tls.check("nbds://h", certificates=str(folder), version=(1, 24, 0))):
        with pytest.raises(errors.ParameterError, match=f"{name}' is no file"):
            check(folder)
    for other in ("/dev/zero", tmp_path):
        with pytest.raises(errors.ParameterError, match="is no file and no pipe"):
            connect(pki, key=other)
    with pytest.raises(errors.ParameterError, match="is no file"):
        nbd_tls.check("nbds://h", psk_file=str(folder / name), version=(1, 24, 0))


@pytest.mark.parametrize(
    ("mode", "is_mine", "warns"),
    [
        *((0o600, True, False), (0o400, True, False), (0o644, True, True), (0o640, True, True), (0o604, True, True)),
        *((0o640, False, False), (0o644, False, True)),
    ],
)
def test_a_key_that_others_may_read_is_told(
    mode: int, is_mine: bool, warns: bool, pki: Path, tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used nevertheless, as QEMU does; the group of a key that is another user's is his matter, as for ssh."""
    folder = tmp_path / "pki"
    shutil.copytree(pki, folder)
    for key in ("client-key.pem", "server-key.pem"):
        (folder / key).chmod(mode)
    if not is_mine:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    psk = tls.make_psk(tmp_path / "psk", "alice")
    psk.chmod(mode)
    for check in (
        *(listen, connect),
        lambda folder: nbd_tls.check("nbds://h", certificates=str(folder), version=(1, 24, 0)),
        lambda _: nbd_tls.check("nbds://h", psk_file=str(psk), version=(1, 24, 0)),
    ):
        caplog.clear()
        check(folder)
        assert caplog.text.count(f"whose mode is {mode:04o}: chmod 600") == warns


@pytest.mark.parametrize("uri", ["tcp:localhost:1", "unix:/x", "file:/x", "-"])
def test_tls_is_never_left_out(uri: str, pki: Path) -> None:
    trust = blkmig.TlsParameters(certificates=pki)
    for start in (channel.listen, channel.Connector):
        with pytest.raises(errors.ParameterError, match="has no TLS, and certificates were said"):
            start(uri, tls=trust)
    with pytest.raises(errors.ParameterError, match="--tls-certificates"):
        channel.Connector("tls:localhost:1")


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        ({"subject": ((("commonName", "a"),),)}, ["a"]),
        ({"subject": ((("organizationName", "o"),), (("commonName", "a"),))}, ["a"]),
        ({"subject": ((("commonName", "a"),),), "subjectAltName": (("DNS", "b"), ("IP Address", "::1"))}, ["b", "::1"]),
        ({}, []),
    ],
)
def test_names_of_a_certificate(certificate: dict[str, Any], names: list[str]) -> None:
    assert channel_tls.names_of(certificate) == names
    assert not channel_tls.why_not_allowed(certificate, [])
    assert channel_tls.why_not_allowed(certificate, ["other"])
    for name in names:
        assert not channel_tls.why_not_allowed(certificate, ["other", name.upper()])


@pytest.mark.parametrize("hostname", [".example.org", "a" * 300 + ".org"])
def test_names_that_no_certificate_has(hostname: str, pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"tls:localhost:{server.getsockname()[1]}"
        with pytest.raises(errors.ParameterError, match="is no name of a host that a certificate could have"):
            channel.connect(where, timeout=5, tls=blkmig.TlsParameters(certificates=pki, hostname=hostname))
