# SPDX-License-Identifier: GPL-2.0-or-later
"""Who holds an image's locks. The kernel does not say so when it refuses a lock; /proc does, for most programs.

A lock belongs to an open file description. So whoever has a descriptor of the file, with a lock in its ``fdinfo``, has
the lock, also where ``/proc/locks`` knows no process. Other users' descriptors can be seen by root only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def describe(file: int | str | os.PathLike[str]) -> str:
    """Return ``, held by NAME (pid N)`` for those who lock the file at a path or a descriptor; "" if none is seen.

    The descriptor that is given does not count.
    """
    own_fd = file if isinstance(file, int) else -1
    with contextlib.suppress(OSError, ValueError):
        about = os.stat(file)  # noqa: PTH116 - a descriptor, perhaps
        names = [_name(pid) for pid in _holders((about.st_dev, about.st_ino), own_fd)]
        return f", held by {', '.join(names)}" if names else ""
    return ""


def _holders(file: tuple[int, int], own_fd: int) -> Iterator[int]:
    for process in _PROC.iterdir():
        if process.name.isdigit():
            pid = int(process.name)
            ours = own_fd if pid == os.getpid() else -1
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                fds = [fd.name for fd in (process / "fd").iterdir()]
                if any(_has_lock(process, fd, file) for fd in fds if int(fd) != ours):
                    yield pid


def _has_lock(process: Path, fd: str, file: tuple[int, int]) -> bool:
    with contextlib.suppress(OSError):
        about = (process / "fd" / fd).stat()
        if (about.st_dev, about.st_ino) == file:
            return "\nlock:" in (process / "fdinfo" / fd).read_text()
    return False


def _name(pid: int) -> str:
    if pid == os.getpid():
        return f"this program itself (pid {pid})"
    name = "a program"
    with contextlib.suppress(OSError):
        name = (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    with contextlib.suppress(OSError):  # the whole name, where we may know
        name = (_PROC / str(pid) / "exe").readlink().name
    return f"{name} (pid {pid})"
