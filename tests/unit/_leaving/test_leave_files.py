# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that leaves its files to a child: what was said is closed at once, the rest when the process has gone."""

from __future__ import annotations

import os
import select

import pytest

from blkmig import _leaving

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
