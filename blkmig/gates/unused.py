# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of a gates.toml that no test has, as after a test was renamed: promises that nobody keeps, and nothing fails.

They can be told of when all tests that may have them have run: those in the file's folder and below.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence

import pytest

from . import gate

_TO_THE_END = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


class Groups:
    """Which groups the tests of one run have, by the gates.toml in which theirs would stand."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}
        self.unfinished: set[str] = set()
        """Tests that were skipped or have failed: nobody knows which groups they have."""

        self.is_whole = True
        """No test was left out."""

    def take(self, had: Iterable[Sequence[str]]) -> None:
        """Take note of groups, each behind the path of its file."""
        for path, group in had:
            self._seen.setdefault(path, set()).add(group)

    def messages(self, config: pytest.Config, exit_code: int) -> list[str]:
        """Return what is to be told at the end of a run, for each file whose tests have all run."""
        if exit_code not in _TO_THE_END or not self.is_whole or _selects(config):
            return []
        places = [_place(config, text) for text in config.args]
        return [
            self._message(path, unused)
            for path, seen in sorted(self._seen.items())
            if any(pathlib.Path(path).parent.is_relative_to(place) for place in places)
            and (unused := [group for group in _groups(path) if group not in seen])
        ]

    def _message(self, path: str, unused: Sequence[str]) -> str:
        count = len(self.unfinished)
        but = f", unless one of those that were skipped or failed has it ({count})" if count else ""
        names = ", ".join(map(repr, unused))
        return f"{path}: no test has the group {names}{but}: nobody keeps its promises; correct its name, or remove it"


def _groups(path: str) -> Iterable[str]:
    """Return the groups of a file, none if it cannot be read by now, or is damaged: its tests have failed."""
    try:
        return gate.read_gates(pathlib.Path(path))
    except (OSError, gate.GateError):
        return ()


def _selects(config: pytest.Config) -> bool:
    """Return whether the command asks for some of the tests only."""
    names = "keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise", "maxfail", "collectonly"
    return any(getattr(config.option, name, None) for name in names)


def _place(config: pytest.Config, text: str) -> pathlib.Path:
    """Return what an argument of the command names: a folder with tests, or less than that."""
    return pathlib.Path(config.invocation_params.dir, text).resolve()
