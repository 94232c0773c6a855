# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig completion``: what a shell has to know to complete command lines, made from the parser itself."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from .. import errors
from . import arguments, output
from . import parser as parsing

SHELLS = ("bash", "zsh")

PATHS = ("FILE", "PATH", "URI", "STREAM", "NAME=IMAGE", "[NAME=]DISK")
"""Words that are, or may be, names of files."""

EXAMPLES = (
    'eval "$(blkmig completion bash)"                           # in ~/.bashrc',
    "blkmig completion bash >/etc/bash_completion.d/blkmig      # for everybody",
    "blkmig completion zsh >~/.zfunc/_blkmig                    # in a folder of $fpath",
)


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    parser = arguments.add_command(
        commands,
        "completion",
        run,
        summary="print what completes command lines of blkmig in a shell (needs blkmig[completion])",
        examples=EXAMPLES,
    )
    parser.add_argument("shell", choices=SHELLS, help="bash or zsh")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        missing = "the Python library shtab is missing: pip install 'blkmig[completion]'"
        raise errors.ParameterError(missing) from error
    top = parsing.build_parser(parsing.ALL_MODULES)
    for command in top.commands.values():
        for action in command._actions:
            if action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.metavar in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    output.put(shtab.complete(top, shell=args.shell))
    return 0
