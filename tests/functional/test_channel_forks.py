# SPDX-License-Identifier: GPL-2.0-or-later
"""Forked processes and what they inherit of a channel."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import descriptors
import forks
import pytest

from blkmig import channel, errors

TIMEOUT = 30


def say_twice(back: channel.OutputQEMUFile) -> None:
    for _ in range(2):
        back.put_be64(0)
        back.wait_until_taken()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_sender_that_gives_up_is_no_end_although_a_process_has_the_socket(kind: str, tmp_path: Path) -> None:
    """A2, B6: the reset does not wait for the last process that has the descriptor."""
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    with (
        channel.listen(uri) as listener,
        channel.connect(listener.uri, timeout=TIMEOUT) as f,
        listener.accept(timeout=TIMEOUT) as peer,
    ):
        with descriptors.socket_to(f.uri):  # as a child of a C library's fork() has it
            f.put_be64(7)
            f.flush()
            back = peer.return_path()
            assert back is not None
            f.abort()
            with contextlib.suppress(errors.ChannelError):  # what came before may be read
                assert peer.get_be64() == 7
            with pytest.raises(errors.ChannelError):
                say_twice(back)
        peer.abort()


@pytest.mark.parametrize("kind", ["tcp", "unix", "exec"])
def test_a_forked_child_keeps_nobody_waiting(kind: str, tmp_path: Path) -> None:
    """B6: the peer sees the end, the command its end of file, although a child of ours lives on."""
    if kind == "exec":
        with channel.connect(f"exec:cat >{tmp_path}/x", timeout=TIMEOUT) as f, forks.living_child():
            f.put_byte(1)
            f.close()
        assert (tmp_path / "x").read_bytes() == b"\1"
        return
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    with channel.listen(uri) as listener:
        f = channel.connect(listener.uri, timeout=TIMEOUT)
        peer = listener.accept(timeout=TIMEOUT)
        back = peer.return_path()
        answers = f.return_path()
        assert back is not None
        assert answers is not None
        with forks.living_child():
            f.put_byte(1)
            f.close()
            assert peer.get_byte() == 1
            assert peer.at_eof()
            peer.abort()
            assert answers.at_eof()
            f.abort()
            listener.close()
            with pytest.raises(errors.ChannelError):
                channel.connect(listener.uri, timeout=TIMEOUT)


def test_a_forked_child_cannot_use_or_cancel_the_channel_of_its_parent() -> None:
    with channel.listen("tcp:127.0.0.1:0") as listener:
        f, peer = channel.connect(listener.uri, timeout=TIMEOUT), listener.accept(timeout=TIMEOUT)
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                f.cancel()
                f.abort()
                try:
                    f.put_byte(1)
                except errors.MigrationError:
                    status = 0
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        f.put_byte(2)
        f.close()
        assert peer.get_byte() == 2
        assert peer.at_eof()
        peer.abort()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_descriptors_are_not_inherited(kind: str, tmp_path: Path) -> None:
    before = descriptors.open_descriptors()
    with channel.listen("tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s") as listener:
        f, peer = channel.connect(listener.uri, timeout=TIMEOUT), listener.accept(timeout=TIMEOUT)
        back = f.return_path()
        to_command = channel.connect("exec:cat >/dev/null", timeout=TIMEOUT)
        assert back is not None
        files = [f, peer, back, to_command]
        fds = descriptors.open_descriptors() - before
        assert len(fds) > 2 * len(files), "one to wake each of them, and the listener's"
        assert not any(map(os.get_inheritable, fds))
        for each in files:
            each.abort()
