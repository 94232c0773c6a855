# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests and benchmarks reach for nothing private: what they look at, and take hold of, is there for others, too.

A test that knows an attribute which nobody else may know breaks when that is renamed, and holds when what it means is
broken. What may be used instead: what the object shows (statistics, events, bytes, descriptors, threads, children), a
name that its module has for all, a clock or a factory that is handed in, the standard library's class that it uses.

``self``, ``cls`` and ``super()`` are the class's own affair; a leading underscore of a module says that it is no user's
business. Programs in texts count, too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted({path for room in ("tests", "benchmarks") for path in (ROOT / room).rglob("*.py")} - {Path(__file__)})

MODULES = {path.stem for path in (ROOT / "blkmig").rglob("_*.py*")}
"""Modules that no user imports: those that are compiled, and the library of the NBD room."""

OWN = {"self", "cls", "os", "sys"}
"""What may be asked for more: a class of one's own, and two modules whose `_exit` and `_getframe` are documented."""

BY_NAME = {"setattr", "getattr", "hasattr", "delattr"}

IN_TEXT = re.compile(r"([\w)\]]+)\.(_[a-z]\w*)")
"""The same in a program that a test has another process run."""

WITHOUT_A_SEAM = {
    "tests/docs/test_facts.py": {"_actions": "argparse has no public list of a parser's options"},
    "tests/docs/test_manual.py": {"_actions": "argparse has no public list of a parser's options"},
    "tests/unit/gates/test_plugin.py": {"_initrequest": "what plugins that run a test again do to pytest's items"},
}
"""What is private and has no seam, with the reason why."""


def is_private(name: str) -> bool:
    """Return whether a name is nobody else's."""
    return name.startswith("_") and not name.startswith("__")


def is_own(value: ast.expr) -> bool:
    """Return whether what has the attribute is the class that the code is in, or a module of the system."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "super"
    return isinstance(value, ast.Name) and value.id in OWN


def is_module(value: ast.expr, name: str) -> bool:
    """Return whether ``value.name`` is a module of the package: ``blkmig._core``, and no attribute called as one."""
    return name in MODULES and isinstance(value, ast.Name) and value.id == "blkmig"


def named(call: ast.Call) -> Iterator[str]:
    """Yield the attributes that a call of setattr() and the like names as text."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function in BY_NAME:
        for argument in call.args[:2]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield where a file reaches for private names, and for which."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)):
                found = [name for owner, name in IN_TEXT.findall(text) if owner not in OWN and name not in MODULES]
            case ast.Attribute(value=value, attr=name) if not is_own(value) and not is_module(value, name):
                found = [name]
            case ast.Call():
                found = list(named(node))
            case ast.ImportFrom():
                found = [alias.name for alias in node.names if alias.name not in MODULES]
            case _:
                continue
        yield from ((node.lineno, name) for name in found if is_private(name))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_private_is_reached_for(path: Path) -> None:
    allowed = WITHOUT_A_SEAM.get(str(path.relative_to(ROOT)), {})
    found = list(private_names(ast.parse(path.read_text())))
    assert [f"line {line}: {name}" for line, name in found if name not in allowed] == []
    assert allowed.keys() <= {name for _, name in found}, "the list has what is not there any more"


def test_the_list_is_short() -> None:
    assert {*WITHOUT_A_SEAM} <= {str(path.relative_to(ROOT)) for path in FILES}
    assert sum(map(len, WITHOUT_A_SEAM.values())) <= 15


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("disk._held", ["_held"]),
        ("disk._gate.wait()", ["_gate"]),
        ("disk._export._writes", ["_export", "_writes"]),
        ("monkeypatch.setattr(module, '_users', 1)", ["_users"]),
        ("monkeypatch.setattr('blkmig.module._users', 1)", ["_users"]),
        ("getattr(disk, '_held')", ["_held"]),
        ("from blkmig.files.locks import _FLOCK", ["_FLOCK"]),
        ("code = 'print(disk._server.pid)'", ["_server"]),
        ("from blkmig import _core", []),
        ("blkmig._core.zero", []),
        ("super()._pwrite(view, offset)", []),
        ("self._held = cls._made", []),
        ("disk.__class__.__name__", []),
        ("os._exit(0)", []),
    ],
)
def test_what_is_found(line: str, names: list[str]) -> None:
    assert sorted(name for _, name in private_names(ast.parse(line))) == names
