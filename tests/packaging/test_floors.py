# SPDX-License-Identifier: GPL-2.0-or-later
"""A file imports only from lower floors of the house, and within its own room without circles.

The files of floor 1 are one room.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "blkmig"
FLOORS = {
    "_core": 0,
    "_gate": 0,
    "_leaving": 0,
    "_output": 0,
    "_input": 0,
    "_storing": 0,
    "errors": 1,
    "later": 1,
    "logs": 1,
    "portable": 1,
    "units": 1,
    "paths": 1,
    "networks": 1,
    "params": 1,
    "pipes": 1,
    "settings": 1,
    "stats": 1,
    "events": 1,
    "roundstats": 1,
    "diskstats": 1,
    "texts": 1,
    "aside": 1,
    "threads": 1,
    "unrun": 1,
    "children": 1,
    "credentials": 1,
    "deprecation": 1,
    "forks": 1,
    "hanging": 1,
    "gates": 1,
    "ownfile": 1,
    "diskmap": 1,
    "zstd": 1,
    "disk": 2,
    "channel": 2,
    "metrics": 2,
    "report": 2,
    "files": 3,
    "savevm": 3,
    "nbd": 4,
    "passage": 4,
    "block": 5,
    "qemu": 5,
    "sources": 6,
    "migration": 7,
    "aio": 8,
    "testing": 8,
    "cli": 8,
    "__init__": 9,
    "__main__": 9,
}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[tuple[str, ...]]:
    """Return what a file imports of the package, as paths from its root; imports for type checking alone count, too."""
    here = path.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            assert len(here) >= node.level - 1, f"{path}: import from outside the package"
            module = (*base, *(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                found.add((*module, alias.name) if is_module((*module, alias.name)) or not module else module)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "blkmig" for name in names), f"{path}: import relatively"
    return found


def is_module(parts: tuple[str, ...]) -> bool:
    """Return whether the package has such a module."""
    path = PACKAGE.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").exists() or path.with_suffix(".pyi").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for target in imported(path):
        if target and target[0] != room:
            lower = FLOORS[target[0]] < FLOORS[room]
            assert lower or FLOORS[room] == FLOORS[target[0]] == 1, f"{room} is not above {target[0]}"


def test_no_circles() -> None:
    graph = {
        path.relative_to(PACKAGE).with_suffix("").parts: {
            target if not (PACKAGE.joinpath(*target)).is_dir() else (*target, "__init__") for target in imported(path)
        }
        for path in FILES
    }
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], trail: tuple[tuple[str, ...], ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join('.'.join(part) for part in (*trail, module))}"
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_license_header(path: Path) -> None:
    assert path.read_text().startswith("# SPDX-License-Identifier: GPL-2.0-or-later\n")
