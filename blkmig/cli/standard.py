# SPDX-License-Identifier: GPL-2.0-or-later
"""The standard streams of the command, whatever state they are handed over in.

A descriptor from 0 to 2 that is missing is filled before anything else is opened: else the next file, a disk perhaps,
would be opened under its number, and what is meant for the terminal would be written into it.

::

    0 missing   reading fails: a stream that is expected there is lost, not empty
    1 missing   writing fails: a stream that goes there is lost; results, which nobody wants then, go nowhere
    2 missing   writing goes nowhere, ours and that of the commands that inherit it
"""

from __future__ import annotations

import contextlib
import os
import sys

_MODES = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_RDWR}


def fill_missing() -> None:
    """Open /dev/null as each of the descriptors 0 to 2 that is missing. Safe to call twice."""
    for fd, mode in _MODES.items():
        if _is_open(fd):
            continue
        with contextlib.suppress(OSError):  # no /dev/null, or no descriptor is left: what follows will say so
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


def discard_stdout() -> None:
    """Keep the interpreter from writing, at its end, what could not be written to stdout before."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
