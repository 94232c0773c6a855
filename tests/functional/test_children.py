# SPDX-License-Identifier: GPL-2.0-or-later
"""A child ends with its parent, whatever ends that one, and leaves no lock and no socket behind (C5, E14)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import command
import pauses
import peers
import pytest
import storage_daemon
from processes import Watched, children_of
from storage_daemon import MiB

import blkmig
from blkmig import children, errors, sources
from blkmig.sources import serve

PARENT = """
import os, subprocess, sys, threading, time
from blkmig import children
def start():
    global child, tie
    child, tie = children.start(["sleep", "1000"], remove=sys.argv[1:], stdout=subprocess.DEVNULL)
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(child.pid, flush=True)
"""


def parent(more: str, *arguments: str | Path) -> tuple[subprocess.Popen[str], Watched]:
    """Start somebody with a child that a thread of his has started, which has ended; then he does `more`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT + more, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=command.environment(),
        text=True,
    )
    assert process.stdout is not None
    return process, Watched(int(process.stdout.readline()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_child_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    socket_path = tmp_path / "a socket"
    socket_path.touch()
    process, child = parent("sys.stdin.read()", socket_path)
    assert child.is_there()  # although the thread that started it has ended
    process.send_signal(number)
    process.communicate()
    assert child.ends()
    assert not socket_path.exists()


def test_a_child_ends_with_a_parent_that_ends_by_itself() -> None:
    process, child = parent("")
    process.communicate()
    assert process.returncode == 0
    assert child.ends()


def test_a_stopped_child_ends_with_its_parent() -> None:
    process, child = parent("child.send_signal(19); print(flush=True); sys.stdin.read()")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert child.ends()


def test_a_fork_of_the_parent_does_not_keep_the_child_alive() -> None:
    more = "if not os.fork():\n    print(os.getpid(), flush=True)\n    time.sleep(1000)\nsys.stdin.read()"
    process, child = parent(more)
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    try:
        process.kill()
        assert child.ends()
    finally:
        os.kill(fork, signal.SIGKILL)
        process.communicate()


def test_a_child_that_has_ended_is_let_go() -> None:
    child, tie = children.start(["true"])
    [watcher] = children_of(os.getpid(), "sh")
    child.wait()
    tie.undo()
    tie.undo()
    assert not watcher.is_there()
    assert not children_of(os.getpid(), "sh"), "it was waited for"


def test_a_program_that_is_not_there_leaves_no_watcher() -> None:
    with pytest.raises(FileNotFoundError):
        children.start(["/nowhere"])
    assert not children_of(os.getpid(), "sh")


def test_a_command_ends_with_a_sender_that_is_killed(tmp_path: Path) -> None:
    """``exec:``, also a command that does not look at its standard input."""
    source, pid_file = tmp_path / "v.raw", tmp_path / "pid"
    source.write_bytes(os.urandom(16 * MiB))
    os.mkfifo(pid_file)
    sender = command.start("send", source, f"exec:head -c1 >/dev/null; echo $$ >{pid_file}; exec sleep 1000")
    child = Watched(int(pid_file.read_text()))
    assert child.is_there()
    sender.kill()
    sender.communicate()
    assert child.ends()


def test_a_sender_of_an_image_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    peers.require("qemu-nbd", "qemu-img", "qemu-io")
    image, fifo = tmp_path / "v.qcow2", tmp_path / "fifo"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    # More than the pipe takes: the sender must not be done before anybody looks.
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 8M", image], check=True)
    os.mkfifo(fifo)
    sender = command.start("send", f"{image},format=qcow2", f"file:{fifo}")
    reader = os.open(fifo, os.O_RDONLY)  # returns when the sender has opened it, which comes behind its disks
    servers = children_of(sender.pid, "qemu-nbd")
    assert servers
    sender.kill()
    sender.communicate()
    assert all(server.ends() for server in servers)
    os.close(reader)
    with sources.open_disk(f"{image},format=qcow2"):  # its lock is free
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_serve_again_after_a_serve_that_was_killed(number: signal.Signals) -> None:
    """E14: the daemon has ended, the image is free, and no socket is left."""
    peers.require("qemu-storage-daemon")
    with storage_daemon.private_folder() as folder:
        image = folder / "v.raw"
        image.write_bytes(bytes(MiB))
        words = ["serve", f"v={image}", "--nbd", f"unix:{folder}/nbd"]
        for _ in range(2):
            serving = command.start(*words)
            assert serving.stdout is not None
            lines = [serving.stdout.readline(), serving.stdout.readline()]
            assert b"send with" in lines[1], serving.communicate()[1]
            daemons = children_of(serving.pid, "qemu-storage")
            assert daemons
            serving.send_signal(number)
            serving.communicate()
            assert all(daemon.ends() for daemon in daemons)
            assert [path.name for path in folder.iterdir()] == ["v.raw"]
            with blkmig.FileBackend(image):
                pass


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_who_holds_the_lock_is_named(kind: str) -> None:
    """E14: a daemon that is still there, whichever program is refused."""
    peers.require("qemu-storage-daemon", "qemu-nbd", "qemu-img")
    with storage_daemon.private_folder() as folder:
        path = folder / f"v.{kind}"
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "1M"], check=True)
        with storage_daemon.StorageDaemon(folder, *storage_daemon.image_options(path)) as daemon:
            named = rf"held by qemu-storage-daemon \(pid {daemon.process.pid}\)"
            with pytest.raises(errors.DeviceBusy, match=named):
                sources.open_disk(f"{path},format={kind}")
            served = serve.ServedDisk("v", sources.describe(f"{path},format={kind}"))
            with pytest.raises(errors.DeviceBusy, match=named):
                serve.StorageDaemon([served], f"unix:{folder}/nbd2")


def test_who_holds_the_lock_may_be_this_program(tmp_path: Path) -> None:
    path = tmp_path / "v.raw"
    path.write_bytes(bytes(MiB))
    named = rf"held by this program itself \(pid {os.getpid()}\)"
    with blkmig.FileBackend(path), pytest.raises(errors.DeviceBusy, match=named):
        blkmig.FileBackend(path)
@pytest.mark.parametrize("words", ["sleep 1000; true", "trap '' TERM; sleep 1000; true", "(sleep 1000; true); true"])
def test_what_a_command_has_started_ends_with_it(words: str) -> None:
    """B3: a command of exec: that has to be ended leaves nothing behind that waits on."""
    child = subprocess.Popen(["/bin/sh", "-c", words])
    below: list[Watched] = []
    while not below:
        parents = [child.pid]
        while parents and not below:
            parent = parents.pop()
            below = children_of(parent, "sleep")
            with contextlib.suppress(OSError):
                parents += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    children.end(child, 0.2)
    assert child.returncode is not None
    assert below[0].ends()


def test_a_command_that_has_ended_is_left_alone() -> None:
    """What it leaves on purpose is not of this."""
    child = subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    left = int(child.stdout.readline())
    child.stdout.close()
    child.wait()
    children.end(child, 0.2)
    os.kill(left, signal.SIGKILL)  # it is there


STARTS = """
import os, sys
os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)])
"""


STANDING = {
    "it has not taken note of an end": ("S", "Z", ["/bin/sh", "-c", "sleep 0 & exec sleep 1000"]),
    "it does not obey": ("S", "S", ["/bin/sh", "-c", "trap '' TERM; sleep 1000; true"]),
    "it just starts another one": ("D", "S", [sys.executable, "-c", STARTS]),
}


@pytest.mark.parametrize(("state", "below", "words"), STANDING.values(), ids=STANDING)
def test_who_stands_still_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, below: str, words: list[str]
) -> None:
    """As long as there is no sign that it does; whatever a command, and what it has started, were at."""
    monkeypatch.setattr(children, "OBEY_SECONDS", 1000.0)
    os.mkfifo(tmp_path / "never")
    child = subprocess.Popen([*words, tmp_path / "never"])
    pauses.until(lambda: (state, [below]) == states(child.pid))
    ending = pauses.Call(lambda: children.end(child, 0.2))
    try:
        ending.result()
    finally:
        child.kill()
    assert child.returncode is not None


def states(pid: int) -> tuple[str, list[str]]:
    """Return the state of a process, and of those that it has started."""
    said = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            said.append(path.read_text().rpartition(") ")[2].split()[:2])
    own = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    return own, [state for state, parent in said if parent == str(pid)]


THREADED = """
import subprocess, sys, threading
def start():
    subprocess.Popen(["sleep", sys.argv[1]])
    print(flush=True)
    threading.Event().wait()
threading.Thread(target=start).start()
"""


@pytest.mark.parametrize(
    "words",
    [
        [sys.executable, "-c", THREADED],
        ["/bin/sh", "-c", 'echo; while :; do sleep "$0" & done'],
        ["/bin/sh", "-c", 'sh -c "echo; while :; do sleep $0 & done" & wait'],
    ],
    ids=["a thread's", "more and more", "more and more below"],
)
def test_nothing_that_a_command_starts_is_missed(words: list[str]) -> None:
    """What another thread of it has started is in no list of the main thread's; and it may start more at any moment."""
    seconds = f"1000.{os.getpid()}"
    child = subprocess.Popen([*words, seconds], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    children.end(child, 5)
    child.stdout.close()
    left = list(sleepers(seconds))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert (child.returncode, left) == (-signal.SIGTERM, [])


def sleepers(seconds: str) -> Iterator[int]:
    """Yield the processes that sleep for so long."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == f"sleep\0{seconds}\0".encode():
                yield int(entry.name)
