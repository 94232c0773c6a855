# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: exit codes, what goes to stdout and what to stderr, Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import command
import lab
import pytest

import blkmig
from blkmig import cli
from blkmig.cli import arguments

MIB = lab.MIB
COMMAND = [sys.executable, "-m", "blkmig"]


def blkmig_command(
    *args: object, stdin: bytes | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    words = [*COMMAND, *map(str, args)]
    return subprocess.run(words, input=stdin, capture_output=True, timeout=timeout, check=False)


@contextlib.contextmanager
def receiving(*args: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``blkmig receive`` in the background and yield the address that it announces."""
    words = [*COMMAND, "receive", "--progress=none", *map(str, args)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield process.stderr.readline().removeprefix("listening on ").strip(), process
        finally:
            process.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    content = bytes(MIB) + b"x" * MIB + lab.random_disk(random.Random(1), 3 * MIB + 512)
    return lab.sparse_file(tmp_path / "vda.raw", content)


def test_send_and_receive(tmp_path: Path, disk: Path) -> None:
    with receiving("--verify", "tcp:127.0.0.1:0", f"drive0={tmp_path}/copy.raw") as (uri, receiver):
        sent = blkmig_command("send", "--verify", f"drive0={disk}", uri)
        assert sent.returncode == 0, sent.stderr
        out, err = receiver.communicate(timeout=30)
    assert (receiver.returncode, err) == (0, "")
    assert (tmp_path / "copy.raw").read_bytes() == disk.read_bytes()
    assert b"downtime" in sent.stdout
    assert "verified" in out
    assert re.search(rb"^section +blkmig$", sent.stdout, re.MULTILINE)
    assert re.search("^section +blkmig$", out, re.MULTILINE)


def test_json_and_progress_for_machines(tmp_path: Path, disk: Path) -> None:
    sent = blkmig_command("send", "--json", "--progress=json", disk, f"file:{tmp_path}/stream")
    result = json.loads(sent.stdout)
    assert result["status"] == "completed"
    assert result["disk_bytes"] == 5 * MIB + 512
    events = [json.loads(line) for line in sent.stderr.splitlines()]
    assert [event["status"] for event in events if event["event"] == "StatusChanged"] == [
        "setup",
        "active",
        "device",
        "completed",
    ]
    uri = f"file:{tmp_path}/stream"
    received = blkmig_command("receive", "--json", "--progress=none", uri, "--into", tmp_path / "d")
    assert json.loads(received.stdout)["disks"]["vda"]["size"] == 5 * MIB + 512
    assert received.stderr == b""


def test_pipeline(tmp_path: Path, disk: Path) -> None:
    """A stream on stdout is nothing but the stream; a name without a disk takes the first one."""
    sent = blkmig_command("send", disk, "-")
    assert sent.stdout.startswith(b"QEVM")
    assert b"downtime" in sent.stderr
    received = blkmig_command("receive", "-", tmp_path / "copy.raw", stdin=sent.stdout)
    assert received.returncode == 0, received.stderr
    assert (tmp_path / "copy.raw").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["send"], 2, "usage"),
        (["send", "DISK", "nowhere"], 2, "tcp:"),
        (["send", "DISK", "tcp:127.0.0.1:1", "--downtime-limit=-1"], 2, "downtime_limit must be from 0"),
        (["send", "DISK", "tcp:127.0.0.1:1", "--max-bandwidth=fast"], 2, "is not a size"),
        (["send", "/nonexistent", "file:OUT"], 1, "No such file"),
        (["receive", "file:/nonexistent", "d=OUT"], 1, "No such file"),
        (["receive", "file:DISK", "d=OUT"], 1, "not a migration stream"),
        (["receive", "file:DISK"], 2, "where the disks go"),
        (["receive", "tcp:127.0.0.1:0", "d=OUT", "--accept-timeout=0.01"], 5, "nobody connected"),
        (["inspect", "DISK"], 1, ""),
        (["inspect", "/nonexistent"], 1, "No such file"),
        (["demo", "--size=1P"], 2, "free"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, disk: Path, args: list[str], exit_code: int, message: str) -> None:
    words = [word.replace("DISK", str(disk)).replace("OUT", f"{tmp_path}/out") for word in args]
    done = blkmig_command(*words)
    assert done.returncode == exit_code, done.stderr
    assert message.encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or not (tmp_path / "out").stat().st_size


def test_qcow2_is_not_sent_as_raw(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(MIB))
    done = blkmig_command("send", tmp_path / "a.img", f"file:{tmp_path}/out")
    assert done.returncode == 2
    assert b"qcow2" in done.stderr


def test_incomplete_and_lost(tmp_path: Path, disk: Path) -> None:
    blkmig_command("send", disk, f"file:{tmp_path}/stream")
    stream = (tmp_path / "stream").read_bytes()
    word = stream.index(b"\x09\x03vda")  # the first zero block
    (tmp_path / "gap").write_bytes(stream[: word - 7] + stream[word + 5 :])
    (tmp_path / "cut").write_bytes(stream[:-40])
    gap = blkmig_command("receive", f"file:{tmp_path}/gap", f"vda={tmp_path}/a.raw")
    cut = blkmig_command("receive", f"file:{tmp_path}/cut", f"vda={tmp_path}/b.raw")
    assert (gap.returncode, cut.returncode) == (3, 5)
    assert b"1 blocks of 1 MiB never came" in gap.stderr
    assert blkmig_command("inspect", tmp_path / "gap").returncode == 3
    assert blkmig_command("inspect", tmp_path / "cut").returncode == 5


def test_busy_disk(tmp_path: Path, disk: Path) -> None:
    with blkmig.FileBackend(disk):
        done = blkmig_command("send", disk, f"file:{tmp_path}/out")
    assert done.returncode == 6
    assert b"write" in done.stderr


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_cancel_cleanly(tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    (tmp_path / "big.raw").write_bytes(os.urandom(MIB) * 64)
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"tcp:127.0.0.1:{server.getsockname()[1]}"
        words = [*COMMAND, "send", "--progress=json", "--connect-timeout=1", str(tmp_path / "big.raw"), uri]
        with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            while "active" not in process.stderr.readline():
                pass
            connection, _ = server.accept()
            with connection:
                connection.recv(MIB)  # it is sending, and will block
                process.send_signal(number)
                _, err = process.communicate(timeout=20)
    assert process.returncode == exit_code
    assert "cancelled" in err
    assert "Traceback" not in err


class NeverClean(blkmig.MemoryBackend):
    """A disk that is wholly dirty again whenever somebody asks."""

    def sync_dirty(self) -> None:
        self.mark_dirty(0, self.size)


def test_no_convergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    disk = NeverClean(bytearray(b"x" * 16 * MIB), name="vda")
    monkeypatch.setattr("blkmig.sources.open_sources", lambda *args, **options: [[disk]])
    words = ["send", "vda", f"file:{tmp_path}/stream", "--max-rounds=2", "--downtime-limit=0", "--progress=none"]
    assert cli.main(words) == 4
    out, err = capfd.readouterr()
    assert "did not converge in 2 rounds" in err
    assert "the writers dirty" in err
    assert not out


def test_inspect(tmp_path: Path, disk: Path) -> None:
    blkmig_command("send", disk, f"file:{tmp_path}/stream")
    data = (tmp_path / "stream").read_bytes()
    shown = blkmig_command("inspect", tmp_path / "stream")
    assert shown.returncode == 0
    assert b"complete: every block of every disk came" in shown.stdout
    as_json = json.loads(blkmig_command("inspect", "-", "--json", stdin=data).stdout)
    assert as_json["schema"] == "blkmig-inspect/1"
    assert as_json["container"]["nbytes"] == len(data)
    assert as_json["disks"][0]["size"] == 5 * MIB + 512
    assert as_json["disks"][0]["size_source"] == "stream"
    listing = blkmig_command("inspect", "--records", tmp_path / "stream").stdout.decode()
    assert "START 'block' instance 0 version 1 id 1" in listing
    assert "PROGRESS 100 %" in listing
    assert listing.count("_BLOCK 'vda'") >= 2
    assert as_json["format"] == "block"


def test_inspect_of_the_section_blkmig(tmp_path: Path, disk: Path) -> None:
    blkmig_command("send", "--format=blkmig", disk, f"file:{tmp_path}/stream")
    shown = blkmig_command("inspect", "--records", tmp_path / "stream")
    assert shown.returncode == 0
    listing = shown.stdout.decode()
    assert "START 'blkmig' instance 0 version 1 id 1" in listing
    assert "  TABLE of 1 disks\n" in listing
    assert f"    'vda' {5 * MIB + 512} bytes, granule " in listing
    assert "complete: every block of every disk came" in listing
    found = json.loads(blkmig_command("inspect", "--json", tmp_path / "stream").stdout)
    assert (found["format"], found["container"]["sections"][0]["idstr"]) == ("blkmig", "blkmig")
    assert found["disks"][0]["size"] == 5 * MIB + 512
    received = blkmig_command("receive", f"file:{tmp_path}/stream", f"vda={tmp_path}/copy.raw", "--json")
    assert json.loads(received.stdout)["format"] == "blkmig"
    assert (tmp_path / "copy.raw").read_bytes() == disk.read_bytes()


def test_demo(tmp_path: Path) -> None:
    done = blkmig_command("demo", "--size=64M", "--dir", tmp_path, "--progress=plain", "--max-bandwidth=0")
    assert done.returncode == 0, done.stderr
    assert b"equal, byte for byte" in done.stdout
    assert b"downtime" in done.stdout
    assert not list(tmp_path.iterdir())


def test_bar(tmp_path: Path, disk: Path) -> None:
    done = blkmig_command("send", "--progress=bar", disk, f"file:{tmp_path}/stream")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vda=a.raw", ("vda", "a.raw")),
        ("a.raw", (None, "a.raw")),
        ("./a=b", (None, "./a=b")),
        ("/x/a=b", (None, "/x/a=b")),
        ("nbd+unix:///?socket=x", (None, "nbd+unix:///?socket=x")),
        ("=x", ("", "x")),
    ],
)
def test_named(text: str, expected: tuple[str | None, str]) -> None:
    assert arguments.named(text) == expected


def test_a_refusal_is_told_at_both_ends(tmp_path: Path, disk: Path) -> None:
    """E13, C6: in the receiver's words, with exit codes of each end, and nothing for the terminal to obey."""
    name = "vda\x1b[2J"
    (tmp_path / f"{name}.raw").write_bytes(b"mine")
    with command.receiver("tcp:127.0.0.1:0", f"{name}={tmp_path}/{name}.raw") as receiver:
        sent = blkmig_command("send", "--progress=json", f"{name}={disk}", receiver.uri)
        came = receiver.finish()
    assert (sent.returncode, came.exit_code) == (1, 1)
    error = json.loads(sent.stderr.splitlines()[-1])
    assert error["kind"] == "TargetFailed"
    assert error["fields"] == {"device": name, "errno": errno.EFBIG, "offset": None}
    for said in (error["message"], came.stderr):
        assert "is too small: it has 4 bytes, and the disk" in said
        assert "\x1b" not in said
    assert (tmp_path / f"{name}.raw").read_bytes() == b"mine"
