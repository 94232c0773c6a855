# SPDX-License-Identifier: GPL-2.0-or-later
"""``import blkmig`` loads nothing, and still everything that is public is there, for people and for type checkers."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

import blkmig

DECLARED = {
    alias.name: node.module
    for node in ast.walk(ast.parse(pathlib.Path(blkmig.__file__).read_text()))
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_import_loads_nothing() -> None:
    """No room, not the compiled part, and neither numpy nor what is slow of the standard library."""
    code = "import sys; before = {*sys.modules}; import blkmig; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-Ic", code], capture_output=True, text=True, check=False)
    if done.returncode:  # not installed, but imported from where the tests are started
        root = str(pathlib.Path(blkmig.__file__).parents[1])
        code = f"import sys; sys.path.insert(0, {root!r}); " + code
        done = subprocess.run([sys.executable, "-Ic", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["blkmig"]


@pytest.mark.parametrize("name", blkmig.__all__)
def test_names_are_what_type_checkers_see(name: str) -> None:
    value = getattr(blkmig, name)  # loads its room
    room = sys.modules[f"blkmig.{DECLARED[name] or name}"]
    assert value is (getattr(room, name) if DECLARED[name] else room)


def test_all_is_all() -> None:
    assert sorted(DECLARED) == blkmig.__all__
    assert {*blkmig.__all__} <= {*dir(blkmig)}


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'blkmig' has no attribute 'nothing'"):
        _ = blkmig.nothing  # type: ignore[attr-defined]
