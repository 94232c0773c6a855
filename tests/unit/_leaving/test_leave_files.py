# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that leaves its files to a child: what was said is closed at once, the rest when the process has gone."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

import blkmig
from blkmig import _leaving, errors
from blkmig.files import locks

SOON = 30.0


def ends(fd: int, seconds: float) -> bool:
    """Return whether the other end of a pipe is closed within so many seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def test_what_is_said_is_closed_first() -> None:
    (closed, closing), (kept, keeping), (waiting, go) = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            _leaving.leave_files([closing], [])
            os.read(waiting, 1)
        finally:
            os._exit(7)
    try:
        os.close(closing)
        os.close(keeping)
        assert ends(closed, SOON)
        assert not ends(kept, 0), "the process still has it"
        os.write(go, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert ends(kept, SOON), "the child ends with the process"
    finally:
        for fd in (closed, kept, waiting, go):
            os.close(fd)


def test_numbers_only() -> None:
    with pytest.raises(TypeError):
        _leaving.leave_files(["1"], [])  # type: ignore[list-item]


def test_locks_of_others_stay(tmp_path: Path) -> None:
    """A file that the process has from whoever started it is not its own, and nor are the locks."""
    path = tmp_path / "d.raw"
    path.write_bytes(bytes(4096))
    (kept, keeping), theirs = os.pipe(), os.open(path, os.O_RDWR)
    os.set_inheritable(theirs, True)
    locks.acquire(theirs, locks.WRITER, device="d")
    pid = os.fork()
    if not pid:
        _leaving.leave_files([], [theirs])
        os._exit(0)
    try:
        os.close(keeping)
        os.waitpid(pid, 0)
        assert ends(kept, SOON), "the child has ended"
        with pytest.raises(errors.DeviceBusy):
            blkmig.FileBackend(path)
    finally:
        os.close(theirs)
        os.close(kept)
    blkmig.FileBackend(path).close()
