# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``blkmig`` command.

stdout is for results, stderr for progress and errors. Exit codes: 0 done and, if asked, verified · 1 failed · 2 usage ·
3 contents differ or blocks are missing · 4 did not converge within the limits · 5 link lost · 6 disk busy or locked ·
7 the target may own the disk, its word did not come · 129, 130 and 143 cancelled by HUP, Ctrl-C and TERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from . import signals, standard


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return its exit code.

    Without `argv` the process is the command's own: its words are the process's, and its end is the process's.
    """
    standard.fill_missing()  # before anything else is opened
    words = list(sys.argv[1:] if argv is None else argv)
    with signals.handling(_say, is_own_process=argv is None) as heard:
        try:
            if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or nobody could know how a command has ended
            from . import outcome  # here, where a signal is heard: all of it takes longer to import than to start

            return outcome.run(words, heard)
        except signals.Interrupted as error:
            _say(str(error))
            return 128 + error.number
        except KeyboardInterrupt:  # where SIGINT is somebody else's
            _say("cancelled")
            return 128 + signal.SIGINT


def _say(text: str) -> None:
    """Say something on stderr, whatever is loaded and whoever holds which lock."""
    with contextlib.suppress(OSError):
        os.write(2, f"blkmig: {text}\n".encode())
