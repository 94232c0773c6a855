# SPDX-License-Identifier: GPL-2.0-or-later
"""The C headers: each compiles alone, kernels know nothing of Python, `_core.pxd` has the contract word for word."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import textwrap
from pathlib import Path

import pytest

import blkmig

PACKAGE = Path(blkmig.__file__).parent
HEADERS = sorted((PACKAGE / "c").glob("*.h"))
KERNELS = {"contract", "zero", "bits", "bits_find", "bits_count", "bits_change", "frame", "clock", "fork", "index"}
KERNELS |= {"leaving"}
"""What is C alone. The others make system calls and say in Python how these fail, all by way of fail.h."""
MOST_LINES = 300

pytestmark = pytest.mark.skipif(not HEADERS, reason="an installed package has no headers")


def named(path: Path) -> str:
    return path.stem


def includes(path: Path) -> set[str]:
    return set(re.findall(r'(?m)^#\s*include [<"](.*?)[>"]', path.read_text()))


def reached(path: Path) -> set[str]:
    """Return everything that a header includes, by way of the others too."""
    found = includes(path)
    for name in includes(path):
        if (path.parent / name).exists():
            found |= reached(path.parent / name)
    return found


@pytest.mark.parametrize("path", HEADERS, ids=named)
def test_compiles_alone(path: Path) -> None:
    """Without a warning; a kernel even where there is no Python.h."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    python = [] if path.stem in KERNELS else ["-isystem", sysconfig.get_path("include")]
    done = subprocess.run(
        ["gcc", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *python, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("narrow", ["SIZE_T", "LONG"])
def test_32_bits_are_refused(narrow: str) -> None:
    """By the compiler, with words that say why: offsets of disks would be cut to their lower half."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    as_if = [f"-U__SIZEOF_{narrow}__", f"-D__SIZEOF_{narrow}__=4"]
    done = subprocess.run(
        ["gcc", "-fsyntax-only", *as_if, PACKAGE / "c" / "contract.h"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "blkmig needs a 64-bit system" in done.stderr


@pytest.mark.parametrize("path", HEADERS, ids=named)
def test_kernels_are_free_of_python(path: Path) -> None:
    assert ("Python.h" in reached(path)) is (path.stem not in KERNELS)
    assert path.stem == "fail" or "Python.h" not in includes(path)


@pytest.mark.parametrize("path", HEADERS, ids=named)
def test_is_short_and_guarded(path: Path) -> None:
    text = path.read_text()
    guard = f"BLKMIG_{path.stem.upper()}_H"
    assert text.startswith("/* SPDX-License-Identifier: GPL-2.0-or-later */\n/*\n")
    assert re.search(rf"(?m)^#ifndef {guard}\n#define {guard}$", text)
    assert text.endswith("\n#endif\n")
    assert len(text.splitlines()) < MOST_LINES


def test_the_contract_stands_in_the_pxd() -> None:
    """Who cimports `_core` has no header, so the text is there as well; whoever changes one changes both."""
    header = (PACKAGE / "c/contract.h").read_text()
    match = re.search(r'cdef extern from \*:\n    """\n(.*?)\n    """', (PACKAGE / "_core.pxd").read_text(), re.DOTALL)
    assert match is not None
    assert textwrap.dedent(match[1]) == header[header.index("#ifndef") :].rstrip("\n")


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.p[yx][xd]")), ids=lambda path: path.name)
def test_the_compiled_code_says_what_it_takes(path: Path) -> None:
    """No textual includes, no names from nowhere, no methods that keep the GIL or not as the caller may be."""
    code = re.sub(r"(?m)#.*$", "", path.read_text())
    assert not re.search(r"(?m)^\s*include\b|cimport \*|\bcpdef\b|^\s*(DEF|IF)\b", code)
