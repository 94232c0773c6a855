# SPDX-License-Identifier: GPL-2.0-or-later
"""A file has one idea, and does not outgrow it: at most 300 lines in the package, 400 in the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE_LINES = 1000
"""The compiled core holds four verbs and every class that they share."""
CODE = ("*.py", "*.pyx", "*.pxd", "*.h")
PACKAGE = sorted(path for kind in CODE for path in (ROOT / "blkmig").rglob(kind))
BESIDE = sorted(path for room in ("tests", "benchmarks", "examples", "tools") for path in (ROOT / room).rglob("*.py"))


def nlines(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_is_not_crowded(path: Path) -> None:
    assert nlines(path) <= (CORE_LINES if path.name == "_core.pyx" else 300)


@pytest.mark.parametrize("path", BESIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_beside_the_package_is_not_crowded(path: Path) -> None:
    assert nlines(path) <= 400
