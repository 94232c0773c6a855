# SPDX-License-Identifier: GPL-2.0-or-later
"""SIGINT, SIGTERM and SIGHUP at each phase of each command (C5): the exit code says which one it was, no child and no
lock is left, and nothing incomplete passes for a disk.

Phases are found by what the command tells of itself, as JSON lines on stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command
import peers
import pytest
import storage_daemon

import blkmig
from blkmig import savevm
from blkmig.migration.questions import BARRIER_PING

MIB = 1 << 20
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
Line = dict[str, Any]


class Running:
    """A command in a session of its own, whose lines on stderr are read as they come."""

    def __init__(self, *words: str | os.PathLike[str], ignored: signal.Signals | None = None) -> None:
        before = None if ignored is None else signal.signal(ignored, signal.SIG_IGN)
        try:
            with storage_daemon.interruptible():
                self.process = subprocess.Popen(
                    command.command(*words),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=command.environment(),
                    start_new_session=True,
                    text=True,
                )
        finally:
            if ignored is not None:
                signal.signal(ignored, before)
        self.lines: list[Line] = []

    def wait_for(self, is_wanted: Callable[[Line], bool]) -> Line:
        """Return the first line that is wanted; fails if the command ends before."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(json.loads(text))
            if is_wanted(self.lines[-1]):
                return self.lines[-1]
        raise AssertionError(f"it ended: {self.lines}")

    def wait_for_phase(self, name: str) -> None:
        """Return when the command tells of this phase."""
        self.wait_for(lambda line: name in (line.get("phase"), line.get("status"), line.get("event")))

    def end_by(self, number: signal.Signals, *, times: int = 1) -> Line:
        """Send the signal, and return the last line, once it is clear that all of the command is gone."""
        for _ in range(times):
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=command.TIMEOUT)
        assert self.process.returncode == 128 + number, (out, self.lines, err)
        lines = [json.loads(text) for text in err.splitlines()]
        assert (lines[-1]["event"], lines[-1]["code"]) == ("Error", 128 + number)
        assert f"cancelled by {number.name}" in lines[-1]["message"]
        assert session_members(self.process.pid) == []
        return dict(lines[-1])

    def kill(self) -> None:
        """Leave nothing behind, whatever the test has found."""
        for pid in session_members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


def session_members(session: int) -> list[int]:
    """Return the processes of a session that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, member_of = path.read_text().rpartition(")")[2].split()[:4]
            if int(member_of) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def running(*words: str | os.PathLike[str], ignored: signal.Signals | None = None) -> Iterator[Running]:
    process = Running(*words, ignored=ignored)
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    path.write_bytes(os.urandom(MIB) * 16)
    return path


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def uri_of(listening: socket.socket) -> str:
    return f"tcp:127.0.0.1:{listening.getsockname()[1]}"


def is_free(disk: Path) -> bool:
    """Return whether nobody holds a lock on the disk."""
    blkmig.FileBackend(disk).close()
    return True


@contextlib.contextmanager
def draining(listening: socket.socket) -> Iterator[None]:
    """Take everything that one sender sends, say when all of it came if asked for that, and never say another word."""
    connection, _ = listening.accept()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while piece := connection.recv(MIB):
                value = int.from_bytes(piece[-4:], "big")
                if value == savevm.ASK or BARRIER_PING < value < BARRIER_PING + 16:
                    connection.sendall(struct.pack(">HHI", savevm.MIG_RP_MSG_PONG, 4, value))

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        thread.join()
        connection.close()


# -- send ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_send_that_waits_for_somebody_who_reads(tmp_path: Path, disk: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "pipe")
    with running("send", "--progress=json", disk, f"file:{tmp_path}/pipe") as sender:
        sender.wait_for_phase("setup")
        sender.end_by(number)
    assert is_free(disk)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("times", [1, 4])
def test_send_in_bulk(disk: Path, server: socket.socket, number: signal.Signals, times: int) -> None:
    """Also with signals that come while it cleans up already."""
    with running("send", "--progress=json", "--max-bandwidth=2M", disk, uri_of(server)) as sender:
        with draining(server):
            sender.wait_for_phase("bulk")
            sender.end_by(number, times=times)
    assert is_free(disk)


def test_send_to_somebody_who_does_not_read(disk: Path, server: socket.socket) -> None:
    with running("send", "--progress=json", "--connect-timeout=1", disk, uri_of(server)) as sender:
        connection, _ = server.accept()
        with connection:
            sender.wait_for_phase("active")
            connection.recv(MIB)  # it is sending, and will block
            sender.end_by(signal.SIGHUP)
    assert is_free(disk)


@pytest.mark.parametrize("number", NUMBERS)
def test_send_that_waits_for_the_word(disk: Path, server: socket.socket, number: signal.Signals) -> None:
    """A copy: the source is in use by its writers, whatever the target has."""
    with running("send", "--progress=json", disk, uri_of(server)) as sender:
        with draining(server):
            sender.wait_for_phase("waiting")
            sender.end_by(number)
    assert is_free(disk)


def test_send_of_a_move_that_waits_for_the_word_is_in_doubt(disk: Path, server: socket.socket) -> None:
    """The target may own the disk: that is exit code 7, not the signal's."""
    with running("send", "--move", "--progress=json", disk, uri_of(server)) as sender:
        with draining(server):
            sender.wait_for_phase("waiting")
            sender.process.send_signal(signal.SIGTERM)
            _, err = sender.process.communicate(timeout=command.TIMEOUT)
    assert (sender.process.returncode, json.loads(err.splitlines()[-1])["kind"]) == (7, "InDoubt")


def test_a_command_as_the_target_is_ended_too(tmp_path: Path, disk: Path) -> None:
    words = ["send", "--progress=json", "--max-bandwidth=2M", disk, f"exec:cat >{tmp_path}/stream"]
    with running(*words) as sender:
        sender.wait_for_phase("bulk")
        sender.end_by(signal.SIGTERM)


def test_hangups_stay_ignored_where_they_were(disk: Path, server: socket.socket) -> None:
    """nohup blkmig send ..."""
    words = ["send", "--progress=json", "--max-bandwidth=2M", disk, uri_of(server)]
    with running(*words, ignored=signal.SIGHUP) as sender, draining(server):
        sender.wait_for_phase("bulk")
        sender.process.send_signal(signal.SIGHUP)
        sender.wait_for_phase("Progressed")
        sender.end_by(signal.SIGTERM)


# -- receive ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_receive_that_listens(tmp_path: Path, number: signal.Signals) -> None:
    with running("receive", "--progress=json", f"unix:{tmp_path}/link", f"vda={tmp_path}/copy.raw") as receiver:
        receiver.wait_for_phase("Listening")
        receiver.end_by(number)
    assert not (tmp_path / "link").exists()
    assert not (tmp_path / "copy.raw").exists()


@pytest.mark.parametrize("words", [["send", "{0}", "file:x"], ["receive", "file:x", "{0}"]], ids=["send", "receive"])
def test_a_disk_that_does_not_answer(tmp_path: Path, server: socket.socket, words: list[str]) -> None:
    """B5: an NBD server that accepts and says nothing, while its disk is being opened."""
    nbd = f"v=nbd://127.0.0.1:{server.getsockname()[1]}/x"
    with running(*(word.format(nbd) for word in words), "--progress=json") as opening:
        connection, _ = server.accept()
        with connection:
            opening.end_by(signal.SIGHUP)


def test_receive_from_somebody_who_says_nothing(tmp_path: Path) -> None:
    with running("receive", "--progress=json", "tcp:127.0.0.1:0", f"vda={tmp_path}/copy.raw") as receiver:
        listening = receiver.wait_for(lambda line: line["event"] == "Listening")
        host, port = listening["uri"].removeprefix("tcp:").rsplit(":", 1)
        with socket.create_connection((host, int(port))):
            receiver.end_by(signal.SIGTERM)


@pytest.mark.parametrize("number", NUMBERS)
def test_receive_in_mid_stream(tmp_path: Path, disk: Path, number: signal.Signals) -> None:
    """What came so far does not pass for the disk, and the same two commands work again."""
    assert command.run("send", f"vda={disk}", f"file:{tmp_path}/stream").exit_code == 0
    stream, target = (tmp_path / "stream").read_bytes(), tmp_path / "copy.raw"
    with running("receive", "--progress=json", f"unix:{tmp_path}/link", f"vda={target}") as receiver:
        receiver.wait_for_phase("Listening")
        with socket.socket(socket.AF_UNIX) as sender:
            sender.connect(f"{tmp_path}/link")
            sender.sendall(stream[: len(stream) // 2])
            receiver.wait_for_phase("Received")
            receiver.end_by(number)
    assert not target.exists()
    again = command.run("receive", f"file:{tmp_path}/stream", f"vda={target}")
    assert again.exit_code == 0, again.stderr
    assert target.read_bytes() == disk.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"vda.raw", "stream", "copy.raw"}


# -- the others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_inspect(tmp_path: Path, number: signal.Signals) -> None:
    """It says nothing of itself, so it is waited for until it has opened its pipe."""
    os.mkfifo(tmp_path / "pipe")
    process = command.start("inspect", f"file:{tmp_path}/pipe")
    with (tmp_path / "pipe").open("wb", buffering=0) as pipe:  # returns when it has been opened at the other end
        pipe.write(b"QEVM")
        process.send_signal(number)
        done = command.finish(process)
    assert (done.exit_code, done.stderr) == (128 + number, f"blkmig: cancelled by {number.name}\n")


@pytest.mark.parametrize("number", NUMBERS)
def test_cleanup_of_a_qemu_that_does_not_answer(tmp_path: Path, number: signal.Signals) -> None:
    """B8: the monitor is taken, or frozen."""
    pytest.importorskip("qemu.qmp")
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(f"{tmp_path}/qmp")
        monitor.listen()
        process = command.start("cleanup", f"qemu:{tmp_path}/qmp", "--connect-timeout=60")
        connection, _ = monitor.accept()
        with connection:
            process.send_signal(number)
            done = command.finish(process)
    assert (done.exit_code, done.stderr) == (128 + number, f"blkmig: cancelled by {number.name}\n")


@pytest.mark.parametrize("number", NUMBERS)
def test_serve(number: signal.Signals) -> None:
    """C5: the storage daemon ends with it, and its sockets go."""
    peers.require("qemu-storage-daemon", "qemu-img")
    with storage_daemon.private_folder() as folder:
        (folder / "vda.raw").write_bytes(bytes(MIB))
        words = ["serve", f"vda={folder}/vda.raw", "--nbd", f"unix:{folder}/nbd"]
        with running(*words) as server:
            assert server.process.stdout is not None
            server.process.stdout.readline()
            assert "send with" in server.process.stdout.readline()
            server.process.send_signal(number)
            _, err = server.process.communicate(timeout=command.TIMEOUT)
            assert (server.process.returncode, err) == (128 + number, f"blkmig: cancelled by {number.name}\n")
            assert session_members(server.process.pid) == []
        assert [path.name for path in folder.iterdir()] == ["vda.raw"]


@pytest.mark.parametrize("phase", ["setup", "bulk", "dirty"])
def test_demo(tmp_path: Path, phase: str, is_long: bool) -> None:
    """Its receiver ends with it, and its two disks go."""
    for number in NUMBERS if is_long else [NUMBERS[len(phase) % 3]]:
        words = ["demo", "--progress=json", "--dir", tmp_path, "--size=32M", "--write-rate=200M", "--max-bandwidth=40M"]
        with running(*words, "--downtime-limit=0.001") as demo:
            demo.wait_for_phase(phase)
            demo.end_by(number)
        assert list(tmp_path.iterdir()) == []
