# SPDX-License-Identifier: GPL-2.0-or-later
"""How the commands that were started have ended: known, or not known, and never taken for granted.

A process that ignores SIGCHLD, as some supervisors leave it to whom they start, is not told how its children end;
nor is one whose other parts wait for any child. Python's `subprocess` makes 0 of that, which is success.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from pathlib import Path


def exit_status(child: subprocess.Popen[bytes]) -> int | None:
    """Return how `child` has ended as Popen gives it, None while it runs.

    Raises ChildProcessError if it has ended and nobody can say how.
    """
    if child.returncode is not None:
        return child.returncode
    try:
        # Looked at, and left: what Popen itself makes of a child that is gone is 0.
        found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        child.returncode = -signal.SIGCHLD  # so that nobody waits for it again, and nobody takes it for a success
        raise status_unknown() from None
    if found is None:
        return None
    child.poll()
    child.returncode = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    return child.returncode


def status_unknown() -> ChildProcessError:
    """Return the error for a command that ended in the dark."""
    return ChildProcessError(
        errno.ECHILD,
        "the command has ended, and nobody can say how: this process ignores SIGCHLD, or another part of it takes the "
        "exit statuses of all children; restore signal.SIG_DFL for SIGCHLD",
    )


def require_statuses() -> None:
    """Raise ChildProcessError if this process would not be told how a command ends; call it before starting one."""
    if is_sigchld_ignored():
        raise status_unknown()


def is_sigchld_ignored() -> bool:
    """Return whether this process ignores SIGCHLD, whoever made it do so."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        status = Path("/proc/self/status").read_text()
        ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
        return bool(int(ignored, 16) >> (signal.SIGCHLD - 1) & 1)
    return signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
