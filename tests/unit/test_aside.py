# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors whose closing nobody waits for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import descriptors
import forks
import pytest

from blkmig import aside


@pytest.mark.parametrize("has_threads", [True, False])
def test_what_has_no_name_any_more_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_threads: bool
) -> None:
    """By a thread, or by the caller where there is none."""

    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with descriptors.given_back():
        fds = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT, 0o600) for number in range(3)]
        with monkeypatch.context() as patched:
            if not has_threads:
                patched.setattr(threading.Thread, "start", none)
            closer = aside.Closer()
            closer.close(fds)
            assert has_threads or not set(fds) & descriptors.open_descriptors()


def test_nothing_to_close_ends_the_thread() -> None:
    """As where there was no place for a session file."""
    before = set(threading.enumerate())
    closer = aside.Closer()
    (mine,) = set(threading.enumerate()) - before
    closer.close([])
    mine.join()


def test_a_forked_child_closes_itself(tmp_path: Path) -> None:
    """The thread is its parent's, and so is the parent's descriptor."""
    with descriptors.given_back():
        closer, fd = aside.Closer(), os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)

        def child() -> None:
            closer.close([fd])
            assert fd not in descriptors.open_descriptors()

        assert forks.in_a_child(child) == ""
        os.fstat(fd)
        closer.close([fd])
