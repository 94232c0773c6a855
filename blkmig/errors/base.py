# SPDX-License-Identifier: GPL-2.0-or-later
"""The root of the tree, what is wrong with a call, and how the first error stays the error."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from .. import portable

_ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "larger than a file may become there: see ulimit -f, and what its file system allows",
    errno.EMFILE: "more files than this process may have open: see ulimit -n",
    errno.ENFILE: "more files than this machine may have open: see sysctl fs.file-max",
}


class MigrationError(portable.Portable, Exception):
    """Something that stops a migration. ``exit_code`` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class ParameterError(MigrationError, ValueError):
    """A parameter, a URI or a size that cannot be used; nothing was opened or changed."""

    exit_code = 2


class DisplayInUse(ParameterError):
    """The `display`, standard output, standard error or a command's own file, goes into a file that a migration uses.
    Nothing was done."""

    def __init__(self, message: str, *, display: str) -> None:
        super().__init__(message)
        self.display = display


class WrongType(ParameterError, TypeError):
    """A parameter of a type that cannot be meant: a text for a yes or no, objects for bytes. Nothing was done."""


class StateError(MigrationError):
    """A call that the present state does not allow; the state is unchanged."""

    def __init__(self, message: str, *, state: str, required: str) -> None:
        super().__init__(f"{message} (state is {state!r}, must be {required!r})")
        self.state = state
        self.required = required


class NoThread(MigrationError, RuntimeError):
    """The system gives this process no more threads."""


def advice(cause: OSError | str) -> str:
    """Return what to do about a system's error; "" where its own text says it."""
    if not isinstance(cause, OSError):
        return ""
    is_ours = cause.errno == errno.EFBIG and cause.strerror != os.strerror(errno.EFBIG)  # a disk that does not fit
    return "" if is_ours else _ADVICE.get(cause.errno or 0, "")


@contextlib.contextmanager
def keeping(first: BaseException | None) -> Iterator[None]:
    """Clean up after `first`, if that is an error, in the body of a ``with``: one of the body becomes a note to it."""
    try:
        yield
    except Exception as error:
        if first is None:
            raise
        _add(first, error)


def each(calls: Iterable[Callable[[], object]]) -> None:
    """Call each of `calls`, whatever the others do; then raise the first error, with a note of each later one."""
    first: BaseException | None = None
    for call in calls:
        try:
            call()
        except BaseException as error:
            if first is not None:
                _add(first, error)
            first = first or error
    if first is not None:
        raise first


def _add(first: BaseException, error: BaseException) -> None:
    if error is first:
        return  # a caller's function may raise one object each time
    first.add_note(f"and then: {error}")
    for note in getattr(error, "__notes__", ()):
        first.add_note(note)
