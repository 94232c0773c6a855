# SPDX-License-Identifier: GPL-2.0-or-later
"""Which threads of this process stand in a call to a file system that does not answer: a server of FUSE or NFS that is
stopped, a device that is gone.

No signal ends such a call, and no time-out. The kernel tells of each thread in /proc which call it is in and how often
it has slept: one that is in the same call of the same sleep when it is looked at again has not moved meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import aside

TASKS = Path("/proc/self/task")

_READ, _WRITE, _FLUSH, _CLOSE, _LOOK = "read", "write", "flush", "close", "look at"
MOVES = (_READ, _WRITE, _FLUSH)
"""What says most of several calls that hang: the others wait for these."""

# By machine: which calls wait for a file system, and what they do to a file. The rest of the calls wait for others.
_CALLS = {
    "x86_64": {
        _READ: (0, 17, 19, 40, 275, 295, 326),
        _WRITE: (1, 18, 20, 76, 77, 285, 296),
        _FLUSH: (74, 75, 277),
        _CLOSE: (3, 138),  # and fstatfs, see `aside.await_answer`
        _LOOK: (5, 8, 72, 73, 262),
        "open or look for": (2, 4, 6, 21, 78, 89, 137, 217, 257, 267, 269, 332, 439),
        "make, name or remove": (82, 83, 84, 86, 87, 258, 263, 264, 265, 316),
    },
    "aarch64": {
        _READ: (63, 65, 67, 69, 71, 76, 285),
        _WRITE: (45, 46, 47, 64, 66, 68, 70),
        _FLUSH: (82, 83, 84),
        _CLOSE: (44, 57),
        _LOOK: (25, 32, 62, 79, 80),
        "open or look for": (43, 48, 56, 61, 78, 291, 439),
        "make, name or remove": (34, 35, 37, 38, 276),
    },
}
_WHICH = {
    "x86_64": {40: (1,), 275: (0, 2), 326: (0, 2)},  # sendfile, splice, copy_file_range
    "aarch64": {71: (1,), 76: (0, 2), 285: (0, 2)},
}.get(platform.machine(), {})
"""Which arguments may be the file, where it is not the first one: the rest are pipes and sockets, or files, too."""

_TO = 2
"""Which argument says where calls write that have two files."""

_VERBS = {number: verb for verb, numbers in _CALLS.get(platform.machine(), {}).items() for number in numbers}

NOT_FILES = ("socket:", "pipe:", "anon_inode:", "/dev/pts/", "/dev/tty", "/dev/console", "/dev/null")
"""How the names of descriptors begin that lead to no file system which may hang."""

UNINTERRUPTIBLE = "D"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What the thread `thread` (its native number) does: it stands in sleep number `sleep`, in a call that is to do
    `verb` with the file `path`. Where one of the two is not known, it is ""."""

    thread: int
    sleep: str
    call: str
    verb: str
    path: str

    def __str__(self) -> str:
        """Say what hangs."""
        what = f"a call that is to {self.verb} a file" if self.verb else "an access to a file"
        where = f"{what}, {self.path!r}," if self.path else what
        return (
            f"{where} does not return, and nothing can interrupt it: the storage, or the server behind it, does not "
            "answer. This process has ended without it; what it holds there is let go when it answers again"
        )


def calls() -> frozenset[Call]:
    """Return the calls in which threads of this process wait for a file system at present. Does not block."""
    return frozenset(found for thread in _threads() if (found := _look(thread)) is not None)


def paths() -> dict[int, str]:
    """Return what each open descriptor leads to, in the kernel's words. Asks no file system."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - it is gone when it is looked at
            with contextlib.suppress(OSError):
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
    return found


def apart_from(hung: Iterable[Call]) -> list[int]:
    """Return the descriptors of files that are on no file system in which a call has `hung`, as far as that is known.
    Asks no file system."""
    where = {call.path for call in hung}
    files = {fd: path for fd, path in paths().items() if not path.startswith(NOT_FILES)}
    mounts = {_mount(fd) for fd, path in files.items() if path in where}
    return [fd for fd in files if _mount(fd) not in mounts]


def await_all() -> None:
    """Return when the file systems of all open files answer: before the process ends, which closes them."""
    for fd, path in paths().items():
        if not path.startswith(NOT_FILES):
            aside.await_answer(fd)


def _mount(fd: int) -> str:
    """Return the kernel's number of the mount that a descriptor leads to; "" if it is closed."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/self/fdinfo/{fd}").read_text().partition("mnt_id:")[2].partition("\n")[0].strip()
    return ""


def _threads() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from map(int, os.listdir(TASKS))  # noqa: PTH208


def _look(thread: int) -> Call | None:
    try:
        state = (TASKS / str(thread) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        status = (TASKS / str(thread) / "status").read_text(errors="replace")
        sleep = status.partition("voluntary_ctxt_switches:")[2].split()[0]
        call = (TASKS / str(thread) / "syscall").read_text().strip()
    except (OSError, IndexError):  # it has ended, or nobody may look
        return None
    number, _, arguments = call.partition(" ")
    verb, path = _VERBS.get(int(number), "") if number.lstrip("-").isdigit() else "", ""
    if verb in (*MOVES, _CLOSE, _LOOK):
        words = arguments.split()
        files = [(_path(words[each]), each) for each in _WHICH.get(int(number), (0,))]
        files = [file for file in files if not file[0].startswith(NOT_FILES)]
        if not files:
            return None
        path, place = files[-1]
        verb = _WRITE if place == _TO else verb
    if not verb and state != UNINTERRUPTIBLE:
        return None
    return Call(thread, sleep, call, verb, path)


def _path(argument: str) -> str:
    """Return what the argument of a call leads to, which is a descriptor."""
    try:
        return os.readlink(f"/proc/self/fd/{int(argument, 16)}")  # noqa: PTH115
    except (OSError, ValueError):
        return ""
