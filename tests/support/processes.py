# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that a test did not start itself: found by parent and program, and watched until they end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blkmig import children

SOON = 30.0


class Watched:
    """A process that need not be a child of ours."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        signal.pidfd_send_signal(self._fd, number)

    def ends(self) -> bool:
        """Return whether it ends soon."""
        return bool(select.select([self._fd], [], [], SOON)[0])

    def is_there(self) -> bool:
        """Return whether it has not ended yet."""
        return not select.select([self._fd], [], [], 0)[0]

    def __del__(self) -> None:
        os.close(self._fd)


def children_of(pid: int, name: str) -> list[Watched]:
    """Return the children of a process whose program is called `name`.

    All processes are looked at: the kernel's own list of children leaves some out while another one ends.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
                comm, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                if comm.startswith(name) and int(rest.split()[1]) == pid:
                    found.append(Watched(int(entry.name)))
    return found


def child_called(name: str) -> Watched:
    """Return the one child of this process whose program is called `name`."""
    [found] = children_of(os.getpid(), name)
    return found


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[Any]]:
    """Return the commands that the package starts from now on."""
    found: list[subprocess.Popen[Any]] = []
    start = children.start

    def noted(*args: Any, **options: Any) -> tuple[subprocess.Popen[Any], children.Tie]:
        child, tie = start(*args, **options)
        found.append(child)
        return child, tie

    monkeypatch.setattr(children, "start", noted)
    return found
