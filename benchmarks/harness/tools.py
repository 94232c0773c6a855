# SPDX-License-Identifier: GPL-2.0-or-later
"""The C programs of the benchmarks, compiled where they are needed, and nothing of them kept."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

SOURCES = pathlib.Path(__file__).parents[1] / "c"


def compiler() -> str | None:
    """Return the C compiler, None if there is none."""
    return shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")


class Tools:
    """Compiled programs, kept in `folder`; a program is built when it is first asked for."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def program(self, name: str) -> str:
        """Return the path of the program ``c/<name>.c``; raises CalledProcessError if it does not compile."""
        return self._build(name, name, [])

    def library(self, name: str) -> str:
        """Return the path of ``c/<name>.c`` as a shared library."""
        return self._build(name, f"{name}.so", ["-shared", "-fPIC"])

    def _build(self, name: str, output: str, flags: list[str]) -> str:
        path = self._folder / output
        if not path.exists():
            cc = compiler()
            if cc is None:
                raise FileNotFoundError("no C compiler")
            source = str(SOURCES / f"{name}.c")
            subprocess.run([cc, "-O3", "-march=native", "-Wall", *flags, "-o", str(path), source], check=True)
        return str(path)
