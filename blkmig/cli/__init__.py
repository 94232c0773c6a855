# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``blkmig`` command.

stdout is for results, stderr for progress and errors. Exit codes: 0 done and, if asked, verified · 1 failed · 2 usage ·
3 contents differ, blocks are missing, or comparing was cut short · 4 did not converge within the limits · 5 link lost ·
6 disk busy or locked · 7 in doubt: the target may own the disk, but did not confirm it · 129, 130 and 143 cancelled by
HUP, Ctrl-C and TERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from . import overdue, signals, standard


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return its exit code.

    Without `argv` the whole process is this one command: its words are those of the process, and both end together.
    """
    standard.fill_missing()  # before anything else is opened
    words = list(sys.argv[1:] if argv is None else argv)
    with signals.handling(_say, _leave, is_own_process=argv is None) as heard:
        code = _run(words, heard)
        if argv is None:
            heard.overdue.depart(code)
        return code


def _run(words: Sequence[str], heard: signals.Signals) -> int:
    try:
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else no exit status of a child could be learned
        try:
            from . import outcome  # only now, because this import takes long, and signals are heard by now
        # Of the compiled modules, of a part of Python that is missing, or of a file that cannot be opened any more.
        except (ImportError, OSError) as error:
            _say(str(error))
            return 1
        return outcome.run(words, heard)
    except signals.Interrupted as error:
        _say(str(error))
        return 128 + error.number
    except KeyboardInterrupt:  # in a program that handles SIGINT itself
        _say("cancelled")
        return 128 + signal.SIGINT


def _leave(number: int) -> None:
    """End the process at once; what is drawn on the terminal is removed before."""
    if shown := sys.modules.get(f"{__name__}.output"):
        shown.stderr.close()
    overdue.leave(number)


def _say(text: str) -> None:
    """Write a message to stderr. It needs no other module, so it works at any moment."""
    if (shown := sys.modules.get(f"{__name__}.output")) and shown.stderr.interject(f"blkmig: {text}"):
        return
    with contextlib.suppress(OSError):
        prefix = "<5>" if standard.is_journal(2) else ""
        os.write(2, f"{prefix}blkmig: {text}\n".encode())
