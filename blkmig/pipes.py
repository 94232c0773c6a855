# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody writes into a pipe for us, as by ``<(pass show token)``. Nobody waits for ever for who writes it."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from collections.abc import Iterator

from . import errors

SECONDS = 30.0
"""How long whoever writes into a pipe may take for all of it."""

MOST_NBYTES = 1 << 20
"""Nobody has longer certificates, of all authorities together."""


def read(fd: int, most: int) -> bytes:
    """Return all that is written into the pipe open at `fd`, which does not block, up to `most` bytes.

    Blocks for `SECONDS` at most, and then raises TimeoutError. Raises OSError.
    """
    said, deadline = b"", time.monotonic() + SECONDS
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(said) < most:
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(f"nobody has written all of it into this pipe within {SECONDS:g} s")
        piece = os.read(fd, most - len(said))
        if not piece:
            break
        said += piece
    return said


@contextlib.contextmanager
def in_a_file(path: str, *, about: str) -> Iterator[str]:
    """Give the path of a file with what is at `path`, for the length of a ``with``: of a pipe, one in memory alone.

    For a library that would wait for a pipe. Blocks as `read`. Raises :class:`~blkmig.errors.ParameterError`, which
    begins with `about`.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, fd)
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                kept = os.memfd_create("blkmig", os.MFD_CLOEXEC)
                stack.callback(os.close, kept)
                os.write(kept, read(fd, MOST_NBYTES))
                path = f"/proc/self/fd/{kept}"
        except OSError as error:
            raise errors.ParameterError(f"{about}: cannot read {path!r}: {error.strerror or error}") from error
        yield path
