# SPDX-License-Identifier: GPL-2.0-or-later
"""Something that happens at any call of blkmig's: as a signal handler, or another thread, may come at any."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest


class Stop:
    """Does `act` once, at call or return number `count` of blkmig's code in the thread that comes to its place first.

    Number 0 is before the place's own call.
    """

    def __init__(self, count: int, act: Callable[[], object]) -> None:
        self._left = count
        self._act = act
        self._is_begun = False
        self.where = "nowhere"
        """The call at which it has happened."""

    @contextlib.contextmanager
    def behind(self, owner: Any, name: str) -> Iterator[None]:
        """Have the function `name` of `owner` be its place for the length of a ``with``."""
        original = getattr(owner, name)

        def passing(*args: Any, **options: Any) -> Any:
            self._begin()
            return original(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, passing)
            yield

    def _begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            if self._left:
                sys.setprofile(self._count)
            else:
                self._happen("its first call")

    def _count(self, frame: FrameType, event: str, _arg: object) -> None:
        name = frame.f_code.co_filename
        if "blkmig" in name and "testing" not in name:  # whose lock it may want
            self._left -= 1
            if not self._left:
                self._happen(f"{frame.f_code.co_qualname}:{frame.f_lineno} ({event})")

    def _happen(self, where: str) -> None:
        sys.setprofile(None)
        self.where = where
        self._act()
