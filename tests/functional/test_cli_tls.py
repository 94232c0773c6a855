# SPDX-License-Identifier: GPL-2.0-or-later
"""``tls:`` on the command line, and the warning of a receiver that anybody can reach."""

from __future__ import annotations

from pathlib import Path

import command
import peers
import pytest
import tls

peers.require("openssl")

WARNING = "anybody who reaches"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificates(tmp_path_factory.mktemp("tls") / "pki", host="localhost")


def test_options_name_folder_and_files(pki: Path, tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(range(256)) * 8192)
    listening = ["--tls-certificates", str(pki), "--allow-peer", "client", "--tls-min", "1.2"]
    with command.receiver("tls:127.0.0.1:0", f"d={tmp_path}/copy.raw", *listening) as receiver:
        assert receiver.uri.startswith("tls:127.0.0.1:")
        mine = ["--tls-cert", pki / "client-cert.pem", "--tls-key", pki / "client-key.pem"]
        files = ["--tls-ca", pki / "ca-cert.pem", *mine]
        sent = command.run("send", *files, "--tls-hostname", "localhost", f"d={tmp_path}/d.raw", receiver.uri)
        assert sent.exit_code == 0, sent.stderr
        outcome = receiver.finish()
    assert outcome.exit_code == 0, outcome.stderr
    assert WARNING not in outcome.stderr
    assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "d.raw").read_bytes()


def test_a_dry_run_takes_the_same_words(pki: Path, tmp_path: Path) -> None:
    """It wanted certificates, and did not see those that were said."""
    (tmp_path / "d.raw").write_bytes(bytes(512))
    words = ("--dry-run=0", f"d={tmp_path}/d.raw", "tls:localhost:1")
    done = command.run("send", "--tls-certificates", pki, *words)
    assert (done.exit_code, "cannot be measured beforehand" in done.stdout) == (0, True), done.stderr
    assert command.run("send", *words).exit_code == 2


def test_another_name_is_exit_5(pki: Path, tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(512))
    trust = ("--tls-certificates", pki)
    with command.receiver("tls:127.0.0.1:0", f"d={tmp_path}/copy.raw", *trust) as receiver:
        sent = command.run("send", *trust, "--tls-hostname", "example.org", f"d={tmp_path}/d.raw", receiver.uri)
    assert sent.exit_code == 5
    assert "Hostname mismatch" in sent.stderr


@pytest.mark.parametrize("words", [[], ["--tls-min", "1.2"], ["--tls-ca", "/nowhere"]])
def test_no_certificates_is_exit_2(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(512))
    sent = command.run("send", *words, f"{tmp_path}/d.raw", "tls:localhost:1")
    received = command.run("receive", *words, "tls:localhost:0", "--into", f"{tmp_path}/new")
    assert (sent.exit_code, received.exit_code) == (2, 2), f"{sent.stderr}{received.stderr}"


def test_certificates_without_tls_are_exit_2(pki: Path, tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(512))
    sent = command.run("send", "--tls-certificates", pki, f"{tmp_path}/d.raw", f"file:{tmp_path}/stream")
    assert sent.exit_code == 2
    assert "has no TLS, and certificates were said" in sent.stderr


@pytest.mark.parametrize(
    ("uri", "words", "warns"),
    [
        ("tcp::0", [], True),
        ("tcp:0.0.0.0:0", [], True),
        ("tcp::0", ["--insecure"], False),
        ("tcp:127.0.0.1:0", [], False),
        ("tcp:localhost:0", [], False),
        ("unix", [], False),
    ],
)
def test_a_receiver_that_anybody_can_reach_says_so_once(
    uri: str, words: list[str], warns: bool, tmp_path: Path
) -> None:
    where = f"unix:{tmp_path}/s" if uri == "unix" else uri
    outcome = command.run("receive", "--accept-timeout", "0.1", *words, where, "--into", f"{tmp_path}/new")
    assert outcome.exit_code == 5
    assert "nobody connected within 0.1 s" in outcome.stderr
    assert outcome.stderr.count(WARNING) == warns


def test_tls_warns_of_nothing(pki: Path, tmp_path: Path) -> None:
    words = ("--accept-timeout", "0.1", "--tls-certificates", pki)
    assert WARNING not in command.run("receive", *words, "tls::0", "--into", f"{tmp_path}/new").stderr
