# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers of a target that compares: how long they are waited for, over all links."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from blkmig import errors, savevm
from blkmig.migration import digestbox


class Silent:
    """A link on which an answer comes only when there is one in `answers`; each look takes a second."""

    def __init__(self) -> None:
        self.now, self.answers = 0.0, 0
        self.uri = "tcp:there:1"
        self.return_path = SimpleNamespace(idle_timeout=5.0, wait_readable=self.wait_readable)
        self.box = digestbox.DigestBox(self, self.read, lambda: self.now)  # type: ignore[arg-type]
        self.box.is_expected = True

    def losing(self, _doing: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def wait_readable(self, _seconds: float) -> bool:
        self.now += 1
        return self.answers > 0

    def read(self, _path: Any) -> None:
        self.answers -= 1
        self.box.keep(savevm.Digest(1, ()), 0)

    def wait(self) -> None:
        while self.box.take(1) is None:
            pass


def test_a_target_that_never_answers_is_not_asked_for_ever() -> None:
    link = Silent()
    for _ in range(savevm.PATIENCE - 1):
        with pytest.raises(errors.ChannelTimeout, match="none came within 5 s"):
            link.wait()
        link.box.forget()
    with pytest.raises(errors.TargetFailed, match=r"within 5 s .* 10 times, although its link came back"):
        link.wait()


def test_an_answer_begins_it_anew() -> None:
    link = Silent()
    for _ in range(3 * savevm.PATIENCE):
        with pytest.raises(errors.ChannelTimeout):
            link.wait()
        link.box.forget()
        link.answers = 1
        link.wait()


def test_what_came_on_a_lost_link_is_dropped() -> None:
    link = Silent()
    link.box.keep(savevm.Digest(1, ()), 0)
    link.box.forget()
    assert link.box.take(0) is None
