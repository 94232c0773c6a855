# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig doctor``: what is here of what blkmig can use, what that enables, and what to install for the rest."""

from __future__ import annotations

import argparse
from typing import Any

from .. import texts
from . import arguments, output


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    parser = arguments.add_command(
        commands,
        "doctor",
        run,
        summary="say which programs, libraries and kernel features are here, and what to install for the rest",
        examples=("blkmig doctor", "blkmig doctor --json"),
    )
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the command. A part that is missing is no error: each is for some uses only."""
    from . import findings  # here, so that other commands, and --help, start sooner

    found = list(findings.findings())
    if args.json:
        output.print_json({"findings": found})
        return 0
    for group in dict.fromkeys(finding.group for finding in found):
        output.put(f"{group}:")
        members = [finding for finding in found if finding.group == group]
        width = max(len(finding.name) for finding in members)
        found_width = max(len(finding.found) for finding in members)
        for finding in members:
            what = (finding.found or "-").ljust(found_width)
            rest = finding.enables if finding.found else f"{finding.enables}: {finding.install}"
            output.put(texts.printable(f"  {finding.name:<{width}}  {what}  {rest}"))
    missing = sum(not finding.found for finding in found)
    output.put(f"{missing} of {len(found)} are missing" if missing else "everything is here")
    return 0
