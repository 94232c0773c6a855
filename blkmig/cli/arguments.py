# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share of the command line: options, and what texts turn into."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .. import errors, units

URI_HELP = "tcp:HOST:PORT, unix:PATH, exec:COMMAND, fd:N, file:PATH[,offset=N] or - (a stream on stdin or stdout)"


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, summary: str, description: str = ""
) -> argparse.ArgumentParser:
    """Add one command and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description or summary)
    parser.set_defaults(run=run)
    return parser


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Add the options about what is shown."""
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "json", "none"),
        default="auto",
        help="how progress is shown on stderr (default: a bar on a terminal, else lines)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def size(text: str) -> int:
    """Parse a size for argparse."""
    try:
        return units.parse_size(text)
    except errors.ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def named(text: str) -> tuple[str | None, str]:
    """Split ``[NAME=]DISK``. What stands before the first "=" is a name unless it has a "/" or a ":"."""
    name, equals, path = text.partition("=")
    if equals and path and not any(mark in name for mark in "/:,"):
        return name, path
    return None, text


def named_size(text: str) -> tuple[str, int]:
    """Parse ``[NAME=]SIZE``; no name stands for every disk."""
    name, _, nbytes = text.rpartition("=")
    return name, units.parse_size(nbytes)
