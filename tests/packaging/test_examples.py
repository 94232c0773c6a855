# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples: each public name has one that runs; two type checkers take those in files; the one in Cython is built."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest

import blkmig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.glob("*.py"))


def used(text: str) -> Iterator[str]:
    """Yield the names of the package itself that a program uses."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "blkmig":
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "blkmig":
            yield from (alias.name for alias in node.names)


def test_every_public_name_has_an_example_that_runs() -> None:
    """In the documentation: tests/docs/test_examples.py runs it."""
    shown = {
        name
        for page in (ROOT / "docs").rglob("*.md")
        for example in pages.examples(page)
        if example.language == "python" and example.kind in ("run", "file")
        for name in used(example.text)
    }
    assert {*blkmig.__all__} - shown == set()


def tool(name: str) -> Path:
    """Return a program that was installed beside Python; the extra "lint" brings it."""
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.skip(f"{name} is not installed: pip install 'blkmig[lint]'")
    return found


def test_mypy_takes_the_examples(tmp_path: Path) -> None:
    mypy = [tool("mypy"), "--strict", "--config-file=", f"--cache-dir={tmp_path}", *PROGRAMS]
    done = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


STRICTLY = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
ITS_OWN = {"reportUnknownMemberType", "reportMissingImports", "reportUnknownVariableType", "reportUnknownArgumentType"}
"""What it says of nbdkit, a module that only that program has."""


@pytest.mark.parametrize("is_wrong", [False, True])
def test_pyright_takes_the_examples(tmp_path: Path, is_wrong: bool) -> None:
    """And so the stubs, and the lazy names of the package, as an editor sees them. It asks no network.

    A program that is wrong shows that it looks at them.
    """
    for program in PROGRAMS:
        shutil.copy(program, tmp_path)
    if is_wrong:
        (tmp_path / "wrong.py").write_text("import blkmig\n\nx: int = blkmig.send(['vda.raw'], 'file:stream')\n")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({**STRICTLY, **dict.fromkeys(ITS_OWN, "none")}))
    pyright = [tool("pyright"), "--project", tmp_path, "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(pyright, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    found = [(Path(each["file"]).name, each["message"]) for each in result["generalDiagnostics"]]
    assert result["summary"]["filesAnalyzed"] == len(PROGRAMS) + is_wrong
    assert [name for name, _ in found] == ["wrong.py"] * is_wrong, found


def test_the_extension_is_built_and_works(tmp_path: Path) -> None:
    """As the page on the compiled primitives says."""
    shutil.copytree(EXAMPLES / "cimport", tmp_path / "heat")
    path = os.pathsep.join([str(Path(blkmig.__file__).parent.parent), *filter(None, sys.path)])
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    code = """
import blkmig, heat
with blkmig.MemoryBackend(bytearray(b"x" + bytes((4 << 20) - 1)), name="d") as disk:
    bitmap = disk.create_dirty_bitmap(65536)
    disk.mark_dirty(0, 1 << 20)
    disk.mark_dirty(3 << 20, 65536)
    assert heat.zero_blocks(disk.pread(0, disk.size)) == [False, True, True, True]
    print(heat.heat(bitmap.bits, 4))
"""
    for command in (build, [sys.executable, "-c", code]):
        done = subprocess.run(
            command,
            cwd=tmp_path / "heat",
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "[1.0, 0.0, 0.0, 0.0625]\n"
