# SPDX-License-Identifier: GPL-2.0-or-later
"""Where results and messages go: into no disk and into no stream, whatever the shell has redirected."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable

from .. import errors
from ..channel import uri as address
from ..disk import identity
from . import streamfile

STDIN_LABEL = "standard input"
STDOUT_LABEL, STDERR_LABEL = "standard output", "standard error"


def known() -> list[tuple[str, identity.KnownFile]]:
    """Return the files that results and messages go to, with what messages call them."""
    streams = ((STDOUT_LABEL, streamfile.STDOUT, sys.__stdout__), (STDERR_LABEL, streamfile.STDERR, sys.__stderr__))
    # Without a stream there is none of that number, or a file that was opened later.
    found = [(label, streamfile.known_fd(fd)) for label, fd, stream in streams if stream is not None]
    return [(label, file) for label, file in found if file is not None]


def check(label: str, files: Iterable[identity.KnownFile]) -> None:
    """Raise :class:`~blkmig.errors.DisplayInUse` if results or messages go to one of the `files` that `label` is at."""
    for file in files:
        for display, other in known():
            if identity.is_same(file, other):
                why = f"{label} is at {file.path!r}, and {display} goes there, too"
                raise errors.DisplayInUse(why, display=display)


def check_reading(uri: str) -> None:
    """Raise :class:`~blkmig.errors.DisplayInUse` if results or messages go where the stream of `uri` comes from."""
    source = streamfile.known_file(uri, writing=False)
    check("the stream", () if source is None else [source])


def stdin() -> list[tuple[str, identity.KnownFile]]:
    """Return the file that is read as standard input, by us or by a command that inherits it, if it is one."""
    found = None if sys.__stdin__ is None else streamfile.known_fd(streamfile.STDIN)
    return [] if found is None else [(STDIN_LABEL, found)]


def is_stdout(uri: str) -> bool:
    """Return whether the stream of `uri` goes where standard output goes, which has no room for results then."""
    try:
        match address.parse_uri(uri):
            case address.StdioAddress():
                return True
            case address.FileAddress(path=path):
                about = os.stat(path)  # noqa: PTH116 - as is fstat
            case address.FdAddress(fd=fd):
                about = os.fstat(fd)
            case _:
                return False
        return not stat.S_ISCHR(about.st_mode) and os.path.samestat(about, os.fstat(streamfile.STDOUT))
    except (OSError, ValueError):
        return False
