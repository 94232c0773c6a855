# SPDX-License-Identifier: GPL-2.0-or-later
"""A channel among other processes, full disks, missing descriptors and a system that says no."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import command
import descriptors
import lab
import pytest

import blkmig
from blkmig import _output, channel, children, errors
from blkmig.channel import listening
from blkmig.migration import pause
from blkmig.nbd import qemuimg

MIB = 1 << 20
TIMEOUT = 30


def test_a_receiver_does_not_reset_what_it_has_said() -> None:
    """Its word must not be lost: abort() of a receiver is a quiet one."""
    with (
        channel.listen("tcp:127.0.0.1:0") as listener,
        channel.connect(listener.uri, timeout=TIMEOUT) as f,
        listener.accept(timeout=TIMEOUT) as peer,
    ):
        answers, back = f.return_path(), peer.return_path()
        assert answers is not None
        assert back is not None
        back.put_be64(5)
        back.flush()
        peer.abort()
        assert answers.get_be64() == 5
        assert answers.at_eof()
        f.abort()


def test_a_word_that_was_taken(tmp_path: Path) -> None:
    with (
        channel.listen("tcp:127.0.0.1:0") as listener,
        channel.connect(listener.uri, timeout=TIMEOUT) as f,
        listener.accept(timeout=TIMEOUT) as peer,
    ):
        back = peer.return_path()
        assert back is not None
        back.put_be64(0)
        back.wait_until_taken()
        f.abort()
    with channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT) as f:
        f.put_byte(1)
        f.wait_until_taken()
    assert (tmp_path / "x").read_bytes() == b"\1"


def test_a_given_socket_can_be_read_on_after_the_stream() -> None:
    """Whoever passed it on may have a protocol of their own around the stream."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"1")
        with channel.listen(f"fd:{ours.fileno()}") as listener, listener.accept(timeout=TIMEOUT) as f:
            assert f.get_byte() == ord("1")
            f.close()
        theirs.sendall(b"2")
        assert ours.recv(1) == b"2"


@contextlib.contextmanager
def sigchld_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_command_line_does_not_inherit_an_ignored_sigchld(tmp_path: Path) -> None:
    """A5."""
    (tmp_path / "d.raw").write_bytes(bytes(1000))
    with sigchld_ignored():
        started = subprocess.Popen(
            command.command("send", f"v={tmp_path}/d.raw", f"exec:cat >{tmp_path}/x.st; exit 3"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    _, said = started.communicate(timeout=TIMEOUT)
    assert started.returncode == 5, said
    assert b"exit status 3" in said


def test_a_status_that_cannot_be_had_is_no_success(tmp_path: Path) -> None:
    """A5: in a program that ignores SIGCHLD, and in one whose other parts wait for all children."""
    (tmp_path / "d.raw").write_bytes(bytes(1000))
    with sigchld_ignored(), pytest.raises(errors.ChannelError, match="SIGCHLD"):
        blkmig.send([tmp_path / "d.raw"], "exec:cat >/dev/null; exit 3")
    child = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED)
    with pytest.raises(ChildProcessError, match="nobody can say how"):
        children.exit_status(child)
    assert child.returncode != 0


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9)])
def test_a_status_that_can_be_had(script: str, status: int) -> None:
    child = subprocess.Popen(["/bin/sh", "-c", script])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert children.exit_status(child) == children.exit_status(child) == status


def test_tools_are_not_started_where_nobody_knows_how_they_end(tmp_path: Path) -> None:
    """A5, sibling: an image that qemu-img did not make is not made."""
    with sigchld_ignored(), pytest.raises(errors.DeviceError, match="SIGCHLD"):
        qemuimg.create_image(tmp_path / "x.qcow2", MIB, format="qcow2", device="x")


def user_timeout(f: channel.OutputQEMUFile | channel.InputQEMUFile) -> int:
    with descriptors.socket_to(f.uri) as sock:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def test_tcp_gives_up_after_two_minutes() -> None:
    """B4: at both ends; and never before the idle time-out, whose words are better."""
    with (
        channel.listen("tcp:127.0.0.1:0") as listener,
        channel.connect(listener.uri, timeout=TIMEOUT) as f,
        listener.accept(timeout=TIMEOUT) as peer,
    ):
        assert user_timeout(f) == user_timeout(peer) == 120_000
        for seconds, expected in ((60.0, 120_000), (600.0, 660_000), (0.0, 0)):
            f.set_idle_timeout(seconds)
            assert user_timeout(f) == expected
        f.abort()


def test_the_queue_is_short_after_the_bulk_phase(tmp_path: Path) -> None:
    """What waits in the socket when the writers are held is a part of their pause."""
    disk = blkmig.MemoryBackend(bytearray(b"x" * 4 * MIB), name="d")
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    with blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters()) as migration:
        before = queue_to(receiver.uri)
        while not lab.sent(migration).bulk_completed:
            migration.iterate()
        queue = queue_to(receiver.uri)
        migration.complete()
    receiver.result()
    assert queue == MIB // 2 != before


def queue_to(uri: str) -> int:
    with descriptors.socket_to(uri) as sock:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)


@pytest.mark.parametrize(("writers_after", "step"), [("release", "release"), ("refuse", "begin_commit")])
def test_the_writers_of_a_copy_do_not_wait_for_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers_after: str, step: str
) -> None:
    """They go on when the last block is in the socket, which takes more then; those of a move wait for the target."""
    queues: list[int] = []
    original = getattr(pause.Pause, step)
    disk = blkmig.MemoryBackend(bytearray(b"x" * 4 * MIB), name="d")
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})

    def look(self: pause.Pause) -> object:
        queues.append(queue_to(receiver.uri))
        return original(self)

    monkeypatch.setattr(pause.Pause, step, look)
    blkmig.send([disk], receiver.uri, writers_after=writers_after, downtime_limit=30)
    receiver.result()
    (queue,) = queues
    assert queue == (MIB // 2 if writers_after == "refuse" else MIB)


def test_the_queue_is_short_again_after_a_pause_that_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * 4 * MIB), name="d")
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    release = pause.Pause.release

    def too_late(self: pause.Pause) -> float:
        self._bound_passed()
        return release(self)

    with blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters()) as migration:
        with monkeypatch.context() as patched:
            patched.setattr(pause.Pause, "release", too_late)
            with pytest.raises(errors.NotConverged):
                migration.complete()
        assert queue_to(receiver.uri) == MIB // 2
        migration.complete()
    receiver.result()


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_unix_socket_is_its_owners(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with channel.listen(f"unix:{tmp_path}/s"):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) & 0o177 == 0
            assert os.umask(umask) == umask
    finally:
        os.umask(before)


def fail(code: int) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.EIO])
@pytest.mark.parametrize(
    "call",
    [
        *("os.eventfd", "os.pipe2", "os.open", "socket.socket.bind", "socket.socket.listen", "os.lstat", "os.fchmod"),
        *("socket.socket.setsockopt", "socket.socket.connect_ex", "fcntl.fcntl", "subprocess.Popen", "select.poll"),
        *("socket.getaddrinfo", "os.fstat", "os.dup", "threading.Thread.start"),
    ],
)
def test_no_oserror_leaves_the_channel(call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C7: everything that opens, with every call that opening makes failing."""
    module, _, name = call.rpartition(".")
    reading, writing = os.pipe()
    os.mkfifo(tmp_path / "fifo")
    holder: object = sys.modules.get(module) or getattr(sys.modules[module.partition(".")[0]], module.partition(".")[2])
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = [f"tcp:127.0.0.1:{server.getsockname()[1]}", f"tcp:localhost:{server.getsockname()[1]}"]
        monkeypatch.setattr(holder, name, fail(code))
        for uri in (*places, f"unix:{tmp_path}/s", "exec:true", f"file:{tmp_path}/x", f"fd:{writing}"):
            with contextlib.suppress(errors.MigrationError):
                channel.connect(uri, timeout=0.2).abort()
        for uri in ("tcp:127.0.0.1:0", "tcp:localhost:0", "tcp::0", f"unix:{tmp_path}/s", f"fd:{reading}"):
            with contextlib.suppress(errors.MigrationError), channel.listen(uri) as listener:
                listener.accept(timeout=0.01).abort()
        for uri in ("exec:true", f"file:{tmp_path}/x", f"file:{tmp_path}/fifo"):
            with contextlib.suppress(errors.MigrationError), channel.listen(uri) as listener:
                listener.accept(timeout=0.01, magics=[b"QEVM"], nbytes=8).abort()
        monkeypatch.undo()
    os.close(reading)
    os.close(writing)


def test_no_memory_for_poll_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Poll:
        register = staticmethod(lambda *args: None)
        poll = staticmethod(fail(errno.ENOMEM))

    monkeypatch.setattr(select, "poll", Poll)
    with channel.listen("tcp:127.0.0.1:0") as listener, pytest.raises(errors.ChannelError, match="memory"):
        listener.accept(timeout=TIMEOUT)


@pytest.mark.parametrize("uri", ["unix:/nonexistent/s", "unix:/proc/s", "unix:/etc/passwd/s", f"unix:/{'x' * 300}"])
def test_places_where_no_socket_can_be(uri: str) -> None:
    for open_it in (lambda: channel.listen(uri), lambda: channel.connect(uri, timeout=1)):
        with pytest.raises(errors.MigrationError):
            open_it()


def test_a_full_disk_under_the_stream_is_no_lost_link(tmp_path: Path) -> None:
    """C11: exit 1 with path and reason."""
    (tmp_path / "d.raw").write_bytes(os.urandom(MIB))
    with pytest.raises(errors.LocalFileError, match=r"No space left on device \[file:/dev/full\]") as caught:
        blkmig.send([tmp_path / "d.raw"], "file:/dev/full")
    assert (caught.value.exit_code, caught.value.errno) == (1, errno.ENOSPC)


def test_a_reader_that_goes_away_is_a_lost_link(tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(os.urandom(8 * MIB))
    with pytest.raises(errors.ChannelError, match="exit status 4") as caught:
        blkmig.send([tmp_path / "d.raw"], "exec:exit 4")
    assert (type(caught.value), caught.value.exit_code) == (errors.ChannelError, 5)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_full_target_is_what_the_sender_hears(kind: str, tmp_path: Path) -> None:
    """C11: between two of us, while blocks are on their way, and at the end."""

    class Full(blkmig.MemoryBackend):
        def write_block(self, *args: object, **kwargs: object) -> None:
            raise errors.DeviceError("cannot write", device="d", cause=OSError(errno.ENOSPC, "No space left on device"))

    (tmp_path / "d.raw").write_bytes(os.urandom(24 * MIB))
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    target = Full(bytearray(24 * MIB), name="d")
    with blkmig.IncomingMigration(uri, {"d": target}) as incoming, concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(incoming.run)
        with pytest.raises(errors.MigrationError, match=r"the target has ended .*No space left on device") as caught:
            blkmig.send([tmp_path / "d.raw"], incoming.uri)
        assert caught.value.exit_code == 1
        with pytest.raises(errors.DeviceError):
            running.result(TIMEOUT)


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """B3: neither past the time to connect, nor past a cancel."""
    hangs = threading.Event()

    def getaddrinfo(*args: object, flags: int = 0, **kwargs: object) -> object:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        hangs.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "no")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(listening, "LISTEN_LOOKUP_SECONDS", 0.1)
    try:
        with pytest.raises(errors.ChannelTimeout, match=r"'slow' is not found out within 0.1 s"):
            channel.connect("tcp:slow:1", timeout=0.1)
        with pytest.raises(errors.ChannelTimeout, match=r"'slow' is not found out within 0.1 s"):
            channel.listen("tcp:slow:1")
        connector = channel.Connector("tcp:slow:1")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            connecting = pool.submit(lambda: connector.connect(timeout=1000))
            connector.cancel()
            with pytest.raises(errors.Cancelled):
                connecting.result(TIMEOUT)
    finally:
        hangs.set()


def test_a_large_buffer_that_a_slow_link_empties_is_no_idle_peer() -> None:
    """B3: the kernel takes nothing for as long as it still has much; what leaves it counts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        out = _output.OutputBuffer(ours.fileno())
        out.set_idle_timeout(1.0)  # emptying the buffer takes 1.6 s
        over = threading.Event()

        def read_slowly() -> None:
            while not over.wait(0.02):
                theirs.recv(2048)

        reader = threading.Thread(target=read_slowly)
        reader.start()
        began = time.monotonic()
        try:
            while time.monotonic() - began < 2.5:
                out.put_buffer(bytes(100_000))
        finally:
            over.set()
            reader.join()


def put_for_ever(out: _output.OutputBuffer) -> None:
    while True:
        out.put_buffer(bytes(100_000))
