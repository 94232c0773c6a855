# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics of a whole migration, from both commands, as a file and over HTTP."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import command
import lab
import pytest

from blkmig.cli import watching

pytest.importorskip("prometheus_client")

MIB = lab.MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def test_both_ends(tmp_path: Path, disk: Path) -> None:
    files = [tmp_path / "in.prom", tmp_path / "out.prom"]
    words = ("tcp:127.0.0.1:0", f"vda={tmp_path}/copy.raw")
    with command.start("receive", f"--metrics={files[0]}", "--metrics-listen=:0", *words) as receiver:
        assert receiver.stderr is not None
        first, second = receiver.stderr.readline().decode(), receiver.stderr.readline().decode()
        uri, url = first.split()[-1], second.split()[-1]
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert b'blkmig_migration_phase{direction="incoming",migration="tcp:127.0.0.1:0"' in answer.read()
        sent = command.run("send", f"--metrics={files[1]}", str(disk), uri)
        received = command.finish(receiver, (first + second).encode())
    assert (sent.exit_code, received.exit_code) == (0, 0), sent.stderr + received.stderr
    for file, direction, name in ((files[0], "incoming", "tcp:127.0.0.1:0"), (files[1], "outgoing", uri)):
        text = file.read_text()
        assert f'blkmig_migration_succeeded{{direction="{direction}",migration="{name}"}} 1.0\n' in text
        size = f'disk_size_bytes{{direction="{direction}",disk="vda",migration="{name}"}} {4 * MIB / 1e6}e+06\n'
        assert size in text


def test_what_fails_early_is_told(tmp_path: Path) -> None:
    sent = command.run("send", f"--metrics={tmp_path}/m.prom", f"{tmp_path}/nothing", "file:x")
    assert sent.exit_code == 1
    text = (tmp_path / "m.prom").read_text()
    assert 'blkmig_migration_failed{direction="outgoing",migration="file:x",reason="DeviceError"} 1.0' in text


def test_a_disk_is_not_replaced_by_metrics(tmp_path: Path, disk: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(before := disk.read_bytes())
    sent = command.run("send", f"--metrics={other}", str(disk), f"file:{tmp_path}/stream")
    assert sent.exit_code == 0
    assert sent.stderr.count("the metrics cannot be written") == 1
    assert other.read_bytes() == before


@pytest.mark.parametrize("words", [("--metrics-listen=9100",), ("--metrics-listen=:1", "--dry-run")])
def test_words_that_make_no_sense(disk: Path, words: tuple[str, ...]) -> None:
    assert command.run("send", *words, str(disk), "file:/dev/null").exit_code == 2


def test_no_secret_in_a_label() -> None:
    uris = ("tcp:h:1", "exec:PASSWORD=x ssh h blkmig receive -", "unix:/s", "-", "what:secret")
    assert [watching.label_of(uri) for uri in uris] == ["tcp:h:1", "exec", "unix:/s", "-", "what"]
