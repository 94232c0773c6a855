# SPDX-License-Identifier: GPL-2.0-or-later
"""Where results and messages go: into no disk and into no stream, whatever the shell has redirected; nor do the files
that a command writes besides."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator

from .. import errors
from ..channel import uri as address
from ..disk import identity
from . import streamfile

STDIN_LABEL = "standard input"
STDOUT_LABEL, STDERR_LABEL = "standard output", "standard error"


def _shown() -> list[tuple[str, int]]:
    """Return what results and messages are written to: what messages call it, and its descriptor."""
    streams = ((STDOUT_LABEL, streamfile.STDOUT, sys.__stdout__), (STDERR_LABEL, streamfile.STDERR, sys.__stderr__))
    # Without a stream there is none of that number, or a file that was opened later.
    return [(label, fd) for label, fd, stream in streams if stream is not None]


@contextlib.contextmanager
def owning(files: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Have a command's own files be known in the body: what messages call each, and its path. Main thread."""
    _own.extend(files)
    try:
        yield
    finally:
        _own.clear()


_own: list[tuple[str, str]] = []


def known() -> list[tuple[str, identity.KnownFile]]:
    """Return the files that results and messages go to, and the command's own, with what messages call them.

    A report comes at the end, and metrics are replaced each second: ask for each comparison.
    """
    shown = [(label, streamfile.known_fd(fd)) for label, fd in _shown()]
    found = [(label, file) for label, file in shown if file is not None]
    for label, path in list(_own):
        with contextlib.suppress(OSError):
            found.append((label, identity.KnownFile.of(path)))
    return found


def check(label: str, files: Iterable[identity.KnownFile]) -> None:
    """Raise :class:`~blkmig.errors.DisplayInUse` if results or messages go to one of the `files` that `label` is at."""
    for file in files:
        for display, other in known():
            if identity.is_same(file, other):
                why = f"{label} is at {file.path!r}, and {display} goes there, too"
                raise errors.DisplayInUse(why, display=display)


def check_writing(uri: str) -> None:
    """Raise :class:`~blkmig.errors.DisplayInUse` if messages go where the stream to `uri` goes.

    Results may be meant to go there: whoever prints them asks `is_stdout` first.
    """
    output = streamfile.known_file(uri, writing=True)
    messages = [file for label, file in known() if label == STDERR_LABEL]
    if output is not None and any(identity.is_same(output, file) for file in messages):
        raise _mixed(f"goes to {output.path!r}")
    if STDERR_LABEL in _in_same_place(uri, writing=True):
        raise _mixed(f"goes to {uri!r}")


def check_reading(uri: str) -> None:
    """Raise :class:`~blkmig.errors.DisplayInUse` if results or messages go where the stream of `uri` comes from.

    Results may go into a socket that the stream comes from, if its source waits for no word there: they follow when the
    stream has ended.
    """
    source = streamfile.known_file(uri, writing=False)
    check("the stream", () if source is None else [source])
    if STDERR_LABEL in _in_same_place(uri, writing=False):
        raise _mixed(f"comes from {uri!r}")


def _mixed(way: str) -> errors.DisplayInUse:
    why = f"the stream {way}, and {STDERR_LABEL} goes there, too: lead it to another place, as with 2>FILE"
    return errors.DisplayInUse(why, display=STDERR_LABEL)


def _in_same_place(uri: str, *, writing: bool) -> list[str]:
    """Return what is shown in the file, pipe or socket that the stream of `uri` goes to, or comes from."""
    try:
        match address.parse_uri(uri):
            case address.StdioAddress():
                about = os.fstat(streamfile.STDOUT if writing else streamfile.STDIN)
            case address.FileAddress(path=path):
                about = os.stat(path)  # noqa: PTH116 - as is fstat
            case address.FdAddress(fd=fd):
                about = os.fstat(fd)
            case _:
                return []
        if stat.S_ISCHR(about.st_mode):  # /dev/null takes everything, and a terminal takes no stream
            return []
        return [label for label, shown in _shown() if os.path.samestat(about, os.fstat(shown))]
    except (OSError, ValueError):
        return []  # whoever opens it says why it cannot be


def stdin() -> list[tuple[str, identity.KnownFile]]:
    """Return the file that is read as standard input, by us or by a command that inherits it, if it is one."""
    found = None if sys.__stdin__ is None else streamfile.known_fd(streamfile.STDIN)
    return [] if found is None else [(STDIN_LABEL, found)]


def is_stdout(uri: str) -> bool:
    """Return whether the stream of `uri` goes where standard output goes, which has no room for results then."""
    return uri == "-" or STDOUT_LABEL in _in_same_place(uri, writing=True)


def answers_on_stdout(uri: str) -> bool:
    """Return whether what the source of `uri` is told goes where standard output goes: they are one socket."""
    return STDOUT_LABEL in _in_same_place(uri, writing=False)
