# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks and threads for tests of the pause, and of others whose threads stand still."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import lab
import pytest

import blkmig
from blkmig import errors
from blkmig.disk import LocalBackend

MIB = lab.MIB
LONG = 30  # seconds that nothing here takes
NBLOCKS = 24


def disk_of(nblocks: int = NBLOCKS) -> blkmig.MemoryBackend:
    return blkmig.MemoryBackend(bytearray(b"x" * nblocks * MIB), name="d")


class Call:
    """A function that runs in a thread of its own; `result` waits for it and returns or raises what it did."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def is_over(self, seconds: float = 0) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> Any:
        assert self.is_over(LONG), "it hangs"
        if self._error is not None:
            raise self._error
        return self._value


def outcome_of_write(disk: LocalBackend) -> str:
    """Return what becomes of a write: it is done, refused, or held."""
    writing = Call(lambda: disk.pwrite(b"mine", 0))
    if not writing.is_over(0.05) and not writing.is_over(1):
        return "held"
    try:
        writing.result()
    except errors.MigrationError:
        return "refused"
    return "done"


@contextlib.contextmanager
def inside(owner: Any, name: str, call: Callable[[], object]) -> Iterator[None]:
    """Have a thread run `call`, and stand still in the function `name` of `owner` for the length of a ``with``.

    With all the locks that are held there, as threads may when somebody forks.
    """
    is_inside, go_on, original = threading.Event(), threading.Event(), getattr(owner, name)

    def slow(*args: Any, **options: Any) -> Any:
        is_inside.set()
        assert go_on.wait(2 * LONG)
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, slow)
        running = Call(call)
        assert is_inside.wait(LONG)
        try:
            yield
        finally:
            go_on.set()
        running.result()


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    for _ in range(LONG * 1000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never is")
