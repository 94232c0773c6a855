# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk on a file system that does not answer any more, in which nothing interrupts a call: the command ends all the
same, once that is wished, says what hangs, and tells the other end."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import command
import pauses
import pytest
import stopped_file

import blkmig
from blkmig import errors

MIB = 1 << 20
SOON = 9.0
"""Less than anything waits that is not told of the end."""

CALLS = {"aarch64": {"write": (64, 66, 68, 70, 76), "flush": (82, 83, 84)}}.get(
    platform.machine(), {"write": (1, 18, 20, 275, 296), "flush": (74, 75, 277)}
)
"""The numbers of calls, those of splice among them, by what they do."""

HURRIED = """import sys
from blkmig.cli import main, overdue, signals
from blkmig.migration import farewell
overdue.SECONDS = overdue.STEP_SECONDS = signals.LOOK_SECONDS = farewell.DRAIN_SECONDS = 0.1
sys.exit(main())"""


def start(*words: str | os.PathLike[str]) -> subprocess.Popen[bytes]:
    """Start the command, with less patience."""
    return subprocess.Popen(
        [sys.executable, "-c", HURRIED, *map(os.fspath, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=command.environment(),
        start_new_session=True,
    )


@contextlib.contextmanager
def command_receiver(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a receiver; give it, and where it listens."""
    receiver = start("receive", "--progress=none", "tcp:127.0.0.1:0", *words)
    try:
        assert receiver.stderr is not None
        yield receiver, receiver.stderr.readline().split()[-1].decode()
    finally:
        receiver.kill()


@pytest.mark.parametrize(
    ("words", "end", "code"),
    [
        (["--reading=inline"], signal.SIGINT, 130),
        (["--reading=parallel"], signal.SIGTERM, 143),
        (["--direct"], signal.SIGTERM, 143),
        (["--timeout=0.2"], None, 4),
    ],
    ids=["inline", "parallel", "direct", "timeout"],
)
def test_a_source_that_hangs(words: list[str], end: signal.Signals | None, code: int, tmp_path: Path) -> None:
    content, count = bytearray(os.urandom(MIB) * 8), 12
    if end is None:
        count = 4  # two are for opening it: on a busy machine no more may come before the time is over
    incoming = blkmig.incoming("tcp:127.0.0.1:0", {"d": tmp_path / "copy.raw"})
    stopped = stopped_file.stopped_file(tmp_path / "d.raw", content, last=stopped_file.READ, count=count)
    with stopped as source, incoming:
        receiver = pauses.Call(incoming.run)
        watched = [f"--report={tmp_path}/report.html", f"--log-json={tmp_path}/log.json"]
        sender = start("send", *words, *watched, f"d={source.path}", incoming.uri)
        try:
            assert source.is_stopped.wait(pauses.LONG)
            if end is not None:
                sender.send_signal(end)
            _, said = sender.communicate(timeout=SOON)
            assert sender.returncode == code, said
            assert f"disk 'd': a call that is to read a file, '{source.path}', does not return" in said.decode()
            assert receiver.is_over(SOON), "the receiver waits for a source that has given up"
            with pytest.raises((errors.ChannelError, errors.TruncatedStream)):
                receiver.result()
        finally:
            sender.kill()
    assert not list(tmp_path.glob(".d.raw*"))
    assert "does not return" in (tmp_path / "report.html").read_text()
    last = json.loads((tmp_path / "log.json").read_text().splitlines()[-1])
    assert (last["event"], last["code"]) == ("Error", code)


def test_what_a_server_answers_for_is_not_mapped(tmp_path: Path) -> None:
    """Whoever waits for a page of a mapping may keep all threads of the process from going on."""
    (tmp_path / "plain.raw").write_bytes(bytes(MIB))
    asking = (
        "import blkmig, sys\n"
        "for path in sys.argv[1:]:\n"
        "    with blkmig.FileBackend(path) as disk:\n"
        "        print(disk.mapping is None)"
    )
    with stopped_file.stopped_file(tmp_path / "d.raw", bytearray(MIB), last=stopped_file.READ, count=99) as source:
        words = [sys.executable, "-c", asking, source.path, tmp_path / "plain.raw"]
        done = subprocess.run(words, env=command.environment(), stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout.split() == [b"True", b"False"]


def test_a_source_that_hangs_while_it_is_opened(tmp_path: Path) -> None:
    content = bytearray(MIB)
    with stopped_file.stopped_file(tmp_path / "d.raw", content, last=stopped_file.OPEN, count=1) as source:
        sender = start("send", source.path, "tcp:127.0.0.1:1")
        try:
            assert source.is_stopped.wait(pauses.LONG)
            sender.send_signal(signal.SIGTERM)
            _, said = sender.communicate(timeout=SOON)
            assert sender.returncode == 143, said
            assert said.startswith(b"blkmig: cancelled by SIGTERM")
        finally:
            sender.kill()


def stands(process: subprocess.Popen[bytes], verb: str) -> bool:
    """Return whether a thread of the process is in a call of that kind."""
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError, ValueError):  # it has ended, or is running
            if int((task / "syscall").read_text().split()[0]) in CALLS[verb]:
                return True
    return False


@pytest.mark.parametrize(("verb", "count"), [("write", 12), ("flush", 8 * 8)])
def test_a_target_that_hangs(verb: str, count: int, tmp_path: Path) -> None:
    backend = pauses.disk_of(8)
    content, last = bytearray(8 * MIB), stopped_file.WRITE
    with (
        stopped_file.stopped_file(tmp_path / "d.raw", content, last=last, count=count) as target,
        command_receiver(f"d={target.path}") as (receiver, uri),
    ):
        sender = pauses.Call(lambda: blkmig.send([backend], uri))
        assert target.is_stopped.wait(pauses.LONG)
        pauses.until(lambda: stands(receiver, verb))  # another thread may be there before, and look at the file
        receiver.send_signal(signal.SIGTERM)
        _, said = receiver.communicate(timeout=SOON)
        assert receiver.returncode == 143, said
        assert f"disk 'd': a call that is to {verb} a file, '{target.path}', does not return" in said.decode()
        assert sender.is_over(SOON), "the sender waits for a receiver that has given up"
        with pytest.raises(errors.TargetFailed, match="cancelled"):
            sender.result()


def test_a_target_elsewhere_is_let_go(tmp_path: Path) -> None:
    """What is behind holds the file that hangs, and nothing else."""
    content, last, elsewhere = bytearray(MIB), stopped_file.WRITE, tmp_path / "e.raw"
    elsewhere.write_bytes(bytes(MIB))
    with (
        stopped_file.stopped_file(tmp_path / "d.raw", content, last=last, count=4) as target,
        command_receiver(f"e={elsewhere}", f"d={target.path}") as (receiver, uri),
    ):
        disks = [blkmig.MemoryBackend(bytearray(b"x" * MIB), name=name) for name in ("e", "d")]
        sender = pauses.Call(lambda: blkmig.send(disks, uri))
        assert target.is_stopped.wait(pauses.LONG)
        receiver.send_signal(signal.SIGTERM)
        _, said = receiver.communicate(timeout=SOON)
        assert receiver.returncode == 143, said
        pauses.until(lambda: can_be_received(elsewhere))  # the system has yet to take note of the end
        assert sender.is_over(SOON)


def can_be_received(path: Path) -> bool:
    """Return whether no process has the file as its target."""
    try:
        with blkmig.incoming("tcp:127.0.0.1:0", {"e": path}):
            return True
    except errors.DeviceBusy:
        return False


def test_a_target_that_hangs_when_all_of_it_is_stored(tmp_path: Path) -> None:
    """Before it has taken the disks: both ends say that it has not."""
    content, last = bytearray(8 * MIB), stopped_file.FSYNC
    with (
        stopped_file.stopped_file(tmp_path / "d.raw", content, last=last, count=2) as target,
        command_receiver(f"d={target.path}") as (receiver, uri),
    ):
        sender = pauses.Call(lambda: blkmig.send([pauses.disk_of(8)], uri, writers_after="refuse"))
        assert target.is_stopped.wait(pauses.LONG)
        receiver.send_signal(signal.SIGTERM)
        _, said = receiver.communicate(timeout=SOON)
        assert receiver.returncode == 143, said
        assert b"does not return" in said
        assert sender.is_over(SOON), "the sender waits for a receiver that has given up"
        with pytest.raises(errors.TargetFailed, match="cancelled"):
            sender.result()
