# SPDX-License-Identifier: GPL-2.0-or-later
"""Names that go say so at the line of whoever uses them, once for each line."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from blkmig import deprecation

SAYS = "blkmig.old is deprecated, and goes with blkmig 3: use blkmig.new"


def inside(name: str, depth: int) -> types.ModuleType:
    """Return a module of this name whose function `old` is deprecated, `depth` calls deep."""
    module = types.ModuleType(name)
    code = "def old(depth):\n    old(depth - 1) if depth else warn('blkmig.old', instead='blkmig.new', goes_with='3')\n"
    module.__dict__["warn"] = deprecation.warn
    exec(compile(code, f"{name}.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize("name", ["blkmig", "blkmig.disk.local"])
def test_the_caller_is_told(name: str, depth: int) -> None:
    module = inside(name, depth)
    with pytest.warns(DeprecationWarning, match=SAYS) as caught:
        module.old(depth)
    assert [Path(each.filename) for each in caught] == [Path(__file__)]


def test_another_package_whose_name_begins_so_is_a_caller() -> None:
    module = inside("blkmig_tool", 0)
    with pytest.warns(DeprecationWarning, match=SAYS) as caught:
        module.old(0)
    assert caught[0].filename == "blkmig_tool.py"


def test_it_can_be_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with pytest.raises(DeprecationWarning, match=SAYS):
            inside("blkmig", 0).old(0)


@pytest.mark.parametrize(("where", "is_shown"), [("program", True), ("tool", False)])
def test_programs_show_it_and_tools_do_not(tmp_path: Path, where: str, is_shown: bool) -> None:
    """As Python does by default with such a warning, because it is at the caller's line."""
    call = "from blkmig import deprecation\ndeprecation.warn('blkmig.old', instead='blkmig.new', goes_with='3')\n"
    (tmp_path / "tool.py").write_text(call if where == "tool" else "")
    (tmp_path / "program.py").write_text(call if where == "program" else "import tool\n")
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (SAYS in done.stderr) == is_shown
