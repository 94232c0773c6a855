# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual of the command: what is under version control is what the parser says, and ``man`` can show it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import peers
import pytest

from blkmig import errors
from blkmig.cli import parser, signals

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manual() -> ModuleType:
    """Return tools/manual.py."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("manual")
    finally:
        sys.path.remove(str(ROOT / "tools"))


def all_errors(kind: type[errors.MigrationError] = errors.MigrationError) -> set[type[errors.MigrationError]]:
    return {kind}.union(*map(all_errors, kind.__subclasses__()))


def test_is_up_to_date(manual: ModuleType) -> None:
    """If this fails: python tools/manual.py."""
    assert {path.name: path.read_text() for path in manual.pages()} == {
        path.name: text for path, text in manual.pages().items()
    }


def test_every_exit_code_is_there(manual: ModuleType) -> None:
    """What the errors of the tree and the signals end with, no more and no less."""
    import manual_words

    (parts,) = [parts for title, parts in manual_words.AFTER if title == "Exit status"]
    said = {int(number) for what, _ in parts[0] for number in re.findall(r"\d+", what)}
    assert said == {0} | {kind.exit_code for kind in all_errors()} | {128 + number for number in signals.SIGNALS}


def test_every_option_is_there(manual: ModuleType) -> None:
    page = manual.COMMAND_PAGE.read_text()
    for name, command in parser.build_parser(parser.ALL_MODULES).commands.items():
        said = page.partition(f"## blkmig {name}\n")[2].partition("\n## ")[0] + page.partition("\n## ")[0]
        options = {option for action in command._actions for option in action.option_strings}
        assert options - {*re.findall(r"-[-a-z]+", said)} == set()


def test_man_shows_it_without_a_warning(manual: ModuleType) -> None:
    peers.require("groff")
    command = ["groff", "-man", "-ww", "-Tascii", "-P-cbou", manual.MAN_PAGE]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    wanted = ("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "EXIT STATUS", "FILES", "ENVIRONMENT", "EXAMPLES")
    assert [title for title in wanted if f"\n{title}\n" not in f"\n{shown.stdout}"] == []
    assert ".NAME.blkmig-partial" in shown.stdout
