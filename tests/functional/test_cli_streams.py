# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard streams that are missing, full, slow, or of another encoding: the work does not depend on them (C6, C9)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from pathlib import Path

import command
import lab
import pytest

MIB = lab.MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return lab.sparse_file(tmp_path / "vda.raw", lab.random_disk(random.Random(1), 3 * MIB + 512))


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which ``$blkmig`` is the command."""
    env = {**command.environment(), "blkmig": " ".join(command.command()), **environment}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def received(folder: Path, disk: Path) -> bool:
    """Return whether the stream in the folder is whole, and holds the disk."""
    done = shell("$blkmig receive --progress=none file:stream vda=copy.raw", folder)
    return done.returncode == 0 and (folder / "copy.raw").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&-", "0<&- 1>&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize("progress", ["plain", "json", "bar"])
def test_missing_descriptors_do_not_matter(tmp_path: Path, disk: Path, closed: str, progress: str) -> None:
    """C6: neither is the disk opened as descriptor 2, nor does a lost display stop anything."""
    done = shell(f"$blkmig send --progress={progress} vda=vda.raw file:stream {closed}", tmp_path)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert received(tmp_path, disk)


def test_a_receiver_needs_no_descriptors(tmp_path: Path, disk: Path) -> None:
    """C6: the receiving side, all three missing."""
    assert shell("$blkmig send vda=vda.raw file:stream", tmp_path).returncode == 0
    assert shell("$blkmig receive file:stream vda=copy.raw 0<&- 1>&- 2>&-", tmp_path).returncode == 0
    assert (tmp_path / "copy.raw").read_bytes() == disk.read_bytes()


def test_a_result_that_cannot_be_written_is_a_failure_after_the_work(tmp_path: Path, disk: Path) -> None:
    """C6: exit 1, said on stderr, and the work is done."""
    done = shell("$blkmig send --progress=none vda=vda.raw file:stream >/dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        b"blkmig: the work is done, but its result cannot be written to stdout: No space left on device\n",
    )
    assert received(tmp_path, disk)
    for words in ("inspect stream", "inspect --json stream", "inspect --records stream", "--help", "--version"):
        done = shell(f"$blkmig {words} >/dev/full", tmp_path)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
        assert b"No space left" in done.stderr


@pytest.mark.parametrize(("stdout", "exit_code"), [("1>&-", 5), ("1>/dev/full", 1), ("| true", 5)])
def test_a_stream_on_stdout_that_is_lost_is_said(tmp_path: Path, disk: Path, stdout: str, exit_code: int) -> None:
    """C6, C11: what goes to stdout is the stream itself: nobody takes it (5), or there is no room for it here (1)."""
    done = shell(f"set -o pipefail; $blkmig send vda=vda.raw - {stdout}", tmp_path)
    assert (done.returncode, b"Traceback" in done.stderr) == (exit_code, False), done.stderr


def test_a_stream_on_a_missing_stdin_is_not_an_empty_one(tmp_path: Path) -> None:
    """C6: exit 5 or 1 and a word, not "complete"."""
    done = shell("$blkmig receive - vda=copy.raw <&-", tmp_path)
    assert done.returncode == 5
    assert b"stdin" in done.stderr or b"[-]" in done.stderr


@pytest.mark.parametrize("progress", ["plain", "json"])
def test_a_reader_of_the_progress_that_stops_or_goes_away(tmp_path: Path, disk: Path, progress: str) -> None:
    """C6: a full pipe that nobody reads holds nothing up; a reader that goes away ends nothing."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(4096))
        os.set_blocking(writing, True)
        words = command.command("send", f"--progress={progress}", "vda=vda.raw", "file:stream")
        env = command.environment()
        assert subprocess.run(words, cwd=tmp_path, env=env, stderr=writing, timeout=60, check=False).returncode == 0
        os.close(reading)
        reading = -1
        assert subprocess.run(words, cwd=tmp_path, env=env, stderr=writing, timeout=60, check=False).returncode == 0
    finally:
        os.close(writing)
        if reading >= 0:
            os.close(reading)
    assert received(tmp_path, disk)


def test_names_are_escaped_where_the_terminal_cannot_show_them(tmp_path: Path, disk: Path) -> None:
    """C9: on an ascii terminal, and bytes that are commands for a terminal anywhere."""
    names = {"ü": b"\\xfc", "a\x1b[2Jb": b"a\\x1b[2Jb", "x\nverdict": b"x verdict", "\udcff": b"\\udcff"}
    for name, shown in names.items():
        assert command.finish(command.start("send", f"{name}={disk}", f"file:{tmp_path}/stream")).exit_code == 0
        for told in (
            "inspect stream",
            "inspect --records stream",
            "inspect --json stream",
            "receive file:stream copy.raw",
        ):
            done = shell(f"rm -f copy.raw; $blkmig {told}", tmp_path, PYTHONIOENCODING="ascii")
            assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
            assert (done.stdout + done.stderr).isascii()
            assert b"\x1b" not in done.stdout + done.stderr
            assert "--json" in told or shown in done.stdout


def test_sigchld_that_is_ignored_hides_no_status(tmp_path: Path, disk: Path) -> None:
    """A5: the command line restores the default, so that a command's status can be had."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = command.start("send", f"v={disk}", f"exec:cat >{tmp_path}/x; exit 3")
    finally:
        signal.signal(signal.SIGCHLD, before)
    done = command.finish(process)
    assert done.exit_code == 5
    assert "3" in done.stderr


def test_json_lines_from_the_first_to_the_last(tmp_path: Path, disk: Path) -> None:
    """E10: also what goes wrong, usage errors included, is JSON for those who asked for it."""
    for words, exit_code, kind in (
        (["send", "--progress=json", str(disk), "nowhere"], 2, "ParameterError"),
        (["send", "--progress", "json", str(disk)], 2, "UsageError"),
        (["send", "--progress=json", "/nonexistent", "file:x"], 1, "DeviceError"),
        (["receive", "--progress=json", f"file:{disk}", f"v={tmp_path}/v"], 1, "StreamError"),
    ):
        done = command.run(*words)
        last = [json.loads(line) for line in done.stderr.splitlines()][-1]
        assert (done.exit_code, last["event"], last["code"], last["kind"]) == (exit_code, "Error", exit_code, kind)
        assert last["message"]
    assert last["fields"]["position"] >= 0
