# SPDX-License-Identifier: GPL-2.0-or-later
"""What is under version control is written by hand, and says nothing of the machine that it was written on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = re.compile(
    r"(^|/)(build|dist|__pycache__|[^/]*\.egg-info)/|\.(so|o|py[co]|html|raw|qcow2|whl|gz)$|^blkmig/.*\.c$"
)
MACHINE = re.compile(rb"/(?:work|root|home|opt|mnt|media|Users)/")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Return the files under version control."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def test_nothing_generated(tracked: list[str]) -> None:
    assert [name for name in tracked if GENERATED.search(name)] == []


def test_no_path_of_a_machine(tracked: list[str]) -> None:
    found = {
        name: match.group().decode()
        for name in tracked
        if name != "tests/packaging/test_repository.py" and (match := MACHINE.search((ROOT / name).read_bytes()))
    }
    assert found == {}


def test_commands_are_executable(tracked: list[str]) -> None:
    commands = [name for name in tracked if name.startswith(".ci/")]
    assert ".ci/run" in commands
    assert [name for name in commands if not (ROOT / name).stat().st_mode & 0o111] == []
