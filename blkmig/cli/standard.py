# SPDX-License-Identifier: GPL-2.0-or-later
"""The standard streams of the command, in whatever state it gets them.

If a descriptor from 0 to 2 is missing, something is opened in its place before anything else. Otherwise the next file,
a disk perhaps, would get that number, and messages for the terminal would be written into it.

::

    0 missing   reading fails: a stream that is expected there is an error, not an empty stream
    1 missing   writing fails: a stream that goes there is an error; results go nowhere, because nobody wants them
    2 missing   messages go nowhere, those of this command and of the commands that inherit the descriptor
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .. import errors

if TYPE_CHECKING:
    from ..disk import identity

_MODES = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_RDWR}


def fill_missing() -> None:
    """Open /dev/null as each of the descriptors 0 to 2 that is missing. Safe to call twice."""
    for fd, mode in _MODES.items():
        if _is_open(fd):
            continue
        with contextlib.suppress(OSError):  # without /dev/null, or without descriptors: the next open says so
            null = os.open(os.devnull, mode)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            os.set_inheritable(fd, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 - for the life of the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def check_messages(words: Sequence[str]) -> None:
    """Raise :class:`~blkmig.errors.DisplayInUse` if a command line names the file that messages are written into.

    Call it before anything is written. The file is recognized under any of its names.
    """
    from ..disk import identity  # here, as below: `main` needs what is above it, also where nothing compiled loads
    from ..migration import displays

    try:
        messages = identity.KnownFile.of(os.readlink("/proc/self/fd/2"), fd=2)  # noqa: PTH115 - it may be no path
    except (OSError, ValueError):
        return
    for word in words if messages.holds_bytes else ():
        for text in _values(word):
            name = "fd:0" if text == "-" else text.removeprefix("file:").partition(",")[0]
            path = f"/proc/self/fd/{name[3:]}" if name.startswith("fd:") else name
            if path and _is_same(path, messages):
                why = f"{text!r} is where standard error goes, so messages would be written into it"
                raise errors.DisplayInUse(why, display=displays.STDERR_LABEL)


def _values(word: str) -> Iterator[str]:
    """Yield all that a word may name: the word itself, and what follows each "=", as in ``--map=0=vda.raw``."""
    yield word
    while "=" in word:
        word = word.partition("=")[2]
        yield word


def _is_same(path: str, messages: identity.KnownFile) -> bool:
    from ..disk import identity

    try:
        return identity.is_same(identity.KnownFile.of(path), messages)
    except (OSError, ValueError):
        return False


def keep_messages_out(*, is_stdout_free: bool) -> None:
    """Send messages to stdout, or nowhere, because stderr leads into a disk or a stream.

    `is_stdout_free`: no stream goes to stdout.
    """
    with contextlib.suppress(OSError):
        if is_stdout_free and not holds_bytes(1) and not os.path.samestat(os.fstat(1), os.fstat(2)):
            os.dup2(1, 2)
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)


def holds_bytes(fd: int) -> bool:
    """Return whether what is written to `fd` can be read again. Raises OSError."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def is_journal(fd: int) -> bool:
    """Return whether `fd` leads to the journal of systemd, which says so in the environment."""
    try:
        about = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


def discard_stdout() -> None:
    """Keep the interpreter from trying again, at its end, to write what stdout has not taken."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
