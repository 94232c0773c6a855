# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams by way of commands, files, pipes and descriptors."""

from __future__ import annotations

import fcntl
import gc
import os
import pathlib
import shlex
import socket
import stat
import subprocess
import sys
import threading

import descriptors
import pytest
from everything import TIMEOUT, check_everything, in_background, put_everything
from everything import listener as listener

from blkmig import channel, errors


def test_commands_carry_everything(tmp_path: pathlib.Path) -> None:
    path = shlex.quote(str(tmp_path / "it's a stream"))
    with channel.connect(f"exec:gzip -1c > {path}", timeout=TIMEOUT) as f:
        nbytes = put_everything(f)
        assert f.return_path() is None
    with channel.listen(f"exec:gzip -dc {path}") as listener, listener.accept(timeout=TIMEOUT) as f:
        assert check_everything(f) == nbytes
        assert f.at_eof()
        assert f.return_path() is None


def test_a_command_prints_to_standard_error_only(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    with channel.connect("exec:cat > /dev/null; echo done", timeout=TIMEOUT) as f:
        f.put_byte(1)
    assert capfd.readouterr() == ("", "done\n")


def test_a_receiving_command_has_nothing_to_read() -> None:
    with channel.listen("exec:wc -c") as listener, listener.accept(timeout=TIMEOUT) as f:
        assert f.get_some(10) == b"0\n"


def test_a_command_may_write_more_than_is_wanted() -> None:
    with channel.listen("exec:cat /dev/zero") as listener, listener.accept(timeout=TIMEOUT) as f:
        assert f.get_buffer(3) == bytes(3)


def test_a_file_carries_everything(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a,b"
    uri = f"file:{tmp_path}/a,,b"
    path.write_bytes(bytes(100 << 20))
    with channel.connect(uri, timeout=TIMEOUT) as f:
        nbytes = put_everything(f)
    assert path.stat().st_size == nbytes, "what was there before is gone"
    with channel.listen(uri) as listener, listener.accept(timeout=TIMEOUT) as f:
        assert check_everything(f) == nbytes
        assert f.at_eof()


def test_a_new_file_is_private(tmp_path: pathlib.Path) -> None:
    channel.connect(f"file:{tmp_path}/new", timeout=TIMEOUT).close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_an_offset_keeps_what_stands_before_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"header..old stream that was longer")
    with channel.connect(f"file:{path},offset=8", timeout=TIMEOUT) as f:
        f.put_buffer(b"new")
    assert path.read_bytes() == b"header..new"
    with channel.listen(f"file:{path},offset=8") as listener, listener.accept(timeout=TIMEOUT) as f:
        assert f.get_buffer(3) == b"new"
        assert f.position == 3
        assert f.at_eof()


def test_a_closed_file_is_on_the_disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT) as f:
        f.put_be64(0)
    assert synced == [8]


def test_a_named_pipe_meets_both_ends(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    uri = f"file:{tmp_path}/pipe"

    def receive() -> int:
        with channel.listen(uri) as listener, listener.accept(timeout=TIMEOUT) as f:
            return check_everything(f)

    with in_background(receive), channel.connect(uri, timeout=TIMEOUT) as f:
        put_everything(f)
        f.close()


def test_a_named_pipe_without_a_reader_times_out(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.ChannelTimeout, match="nobody reads"):
        channel.connect(f"file:{tmp_path}/pipe", timeout=0.05)


def test_a_pipe_carries_everything_and_keeps_its_flags() -> None:
    read_fd, write_fd = os.pipe()
    before = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (read_fd, write_fd)]

    def receive() -> int:
        with channel.listen(f"fd:{read_fd}") as listener, listener.accept(timeout=TIMEOUT) as f:
            return check_everything(f)

    with in_background(receive), channel.connect(f"fd:{write_fd}", timeout=TIMEOUT) as f:
        put_everything(f)
        assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (read_fd, write_fd)] == before
        assert f.return_path() is None
        f.close()
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (read_fd, write_fd)] == before
    os.close(read_fd)
    os.close(write_fd)


def test_a_socket_descriptor_goes_both_ways() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def receive() -> int:
            with channel.listen(f"fd:{theirs.fileno()}") as listener, listener.accept(timeout=TIMEOUT) as f:
                back = f.return_path()
                assert back is not None
                nbytes = check_everything(f)
                assert f.at_eof(), "the end is said although the descriptor stays open"
                with back:
                    back.put_be64(nbytes)
                return nbytes

        with in_background(receive), channel.connect(f"fd:{ours.fileno()}", timeout=TIMEOUT) as f:
            back = f.return_path()
            assert back is not None
            nbytes = put_everything(f)
            f.close()
            assert back.get_be64() == nbytes
            back.close()
        assert ours.getblocking()
        os.fstat(ours.fileno())


def test_a_file_descriptor_goes_on_where_it_stands(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "f").open("w+b", buffering=0) as file:
        file.write(b"head")
        with channel.connect(f"fd:{file.fileno()}", timeout=TIMEOUT) as f:
            f.put_buffer(b"stream")
        file.write(b"tail")
        assert (tmp_path / "f").read_bytes() == b"headstreamtail"


SCRIPT = """
import sys
from blkmig import channel
if sys.argv[1] == "send":
    with channel.connect("-", timeout=1) as f:
        f.put_buffer(b"x" * 200000)
else:
    with channel.listen("-") as listener, listener.accept(timeout=1) as f:
        print(len(f.get_buffer(200000)), f.at_eof())
"""


def test_the_standard_streams() -> None:
    def run(verb: str) -> list[str]:
        return [sys.executable, "-c", SCRIPT, verb]

    sender = subprocess.Popen(run("send"), stdout=subprocess.PIPE)
    receiver = subprocess.run(run("receive"), stdin=sender.stdout, capture_output=True, timeout=60, check=True)
    assert sender.stdout is not None
    sender.stdout.close()
    assert sender.wait(60) == 0
    assert receiver.stdout == b"200000 True\n"


def test_a_terminal_is_refused() -> None:
    primary, secondary = os.openpty()
    for open_it in (
        lambda: channel.connect(f"fd:{secondary}", timeout=1),
        lambda: channel.listen(f"fd:{secondary}").accept(timeout=1),
    ):
        with pytest.raises(errors.ParameterError, match="terminal"):
            open_it()
    os.close(primary)
    os.close(secondary)


def test_nothing_leaks(tmp_path: pathlib.Path) -> None:
    def everything() -> None:
        with channel.listen(f"unix:{tmp_path}/s") as listener:
            f = channel.connect(listener.uri, timeout=TIMEOUT)
            peer = listener.accept(timeout=TIMEOUT)
            for end in (f, peer):
                back = end.return_path()
                assert back is not None
                end.close()
                back.close()
        channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT).close()
        channel.connect("exec:cat >/dev/null", timeout=TIMEOUT).close()
        channel.connect("exec:cat >/dev/null", timeout=TIMEOUT).abort()
        for bad in ("fd:99999", f"file:{tmp_path}", f"unix:{tmp_path}/none", "tcp:127.0.0.1:1"):
            with pytest.raises(errors.ChannelError):
                channel.connect(bad, timeout=TIMEOUT)

    everything()
    before = set(threading.enumerate())
    with descriptors.given_back():
        everything()
        gc.collect()
    assert not set(threading.enumerate()) - before
