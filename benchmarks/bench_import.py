# SPDX-License-Identifier: GPL-2.0-or-later
"""What it takes until blkmig can be used: ``import blkmig`` over the bare interpreter, with bytecode that is cached."""

import subprocess
import time

import pytest
from harness import jobs

ALLOWANCE = 0.025  # seconds


@pytest.fixture
def python(arena):
    """Return the command of a Python that runs a statement."""
    job = arena.job(arena.folder)
    return lambda statement: [str(word) for word in jobs.python(job, "-c", statement)]


def test_import(ratio, python):
    """``import blkmig`` takes at most 25 ms more than a Python that does nothing."""

    def bare():
        start = time.perf_counter()
        subprocess.run(python("pass"), check=True)
        return {"wall": time.perf_counter() - start + ALLOWANCE}

    ratio({"import blkmig": python("import blkmig"), "python + 25 ms": bare}, group="import blkmig", max_time=15)


def test_command(ratio, python):
    """``blkmig --help``, and what Python takes at least."""
    shown = python("import blkmig.cli, contextlib\nwith contextlib.suppress(SystemExit): blkmig.cli.main(['--help'])")
    ratio({"blkmig --help": shown, "python": python("pass")}, group="start of the command", max_time=5)
