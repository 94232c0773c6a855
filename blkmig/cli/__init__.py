# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``blkmig`` command.

stdout is for results, stderr for progress and errors. Exit codes: 0 done and, if asked, verified · 1 failed · 2 usage ·
3 contents differ or blocks are missing · 4 did not converge within the limits · 5 link lost · 6 disk busy or locked ·
130 and 143 cancelled by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from .. import errors
from . import output

_COMMANDS = {
    "send": "send",
    "receive": "receive",
    "inspect": "inspect",
    "serve": "serve",
    "cleanup": "serve",
    "demo": "demo",
}
"""The module of each command."""

EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class Terminated(BaseException):
    """SIGTERM, raised where the main thread is: it unwinds like Ctrl-C, so everything is cleaned up."""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; each command's `run` default is the function that runs it.

    With a `command`, it knows no other: those of the others need not be imported.
    """
    parser = argparse.ArgumentParser(
        prog="blkmig",
        description="Move disks while they are being written: QEMU's live block migration, without QEMU.",
        epilog="Sizes take K, M, G and T, powers of 1024.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in dict.fromkeys(_COMMANDS.values() if command is None else [_COMMANDS[command]]):
        importlib.import_module(f"{__name__}.{module}").add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    args = build_parser(words[0] if words and words[0] in _COMMANDS else None).parse_args(words)
    output.set_up_logging(verbose=args.verbose)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        exit_code: int = args.run(args)
        sys.stdout.flush()
    except errors.MigrationError as error:
        output.print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        output.print_error("cancelled")
        return EXIT_SIGINT
    except Terminated:
        output.print_error("cancelled by SIGTERM")
        return EXIT_SIGTERM
    except BrokenPipeError:
        _discard_stdout()
        return 1
    return exit_code


def _terminate(signum: int, frame: object) -> None:
    """Unwind the main thread, once: a second signal must not disturb the clean-up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _discard_stdout() -> None:
    """Keep the interpreter from complaining about a reader of stdout that went away."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
