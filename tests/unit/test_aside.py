# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors whose closing nobody waits for."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import Any

import descriptors
import forks
import pauses
import pytest

from blkmig import aside

SOON = 9.0
"""A thousand times what closing a file takes."""


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


def test_a_thread_that_is_done_at_once_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has taken what is to be closed, and has ended, before the caller looks whether there is one."""
    begun: list[threading.Thread] = []

    class Jobs(queue.SimpleQueue[Any]):
        def put(self, item: Any, *args: Any, **options: Any) -> None:
            super().put(item, *args, **options)
            begun[0].join(pauses.LONG)

    monkeypatch.setattr(queue, "SimpleQueue", Jobs)
    with descriptors.given_back():
        before = set(threading.enumerate())
        closer, fd = aside.Closer(), os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
        begun += set(threading.enumerate()) - before
        closing = pauses.Call(lambda: closer.close([fd]))
        assert closing.is_over(SOON), "it waits for something more to close"
        closing.result()
