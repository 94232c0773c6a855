# SPDX-License-Identifier: GPL-2.0-or-later
"""What it takes until blkmig can be used, over the bare interpreter, with bytecode that is cached.

An interpreter with an editable install has loaded a part of the standard library before it runs anything, and so looks
better here than one with an ordinary install, by up to 8 ms.
"""

import subprocess
import time

import pytest
from harness import jobs

ALLOWANCE = 0.025  # seconds
EVERYTHING = "import blkmig; blkmig.send, blkmig.receive, blkmig.FileBackend"
COMMAND = "import sys; from blkmig.cli import main; sys.exit(main())"


@pytest.fixture
def python(arena):
    """Return the command of a Python that runs a statement."""
    job = arena.job(arena.folder)
    return lambda statement, *words: [str(word) for word in jobs.python(job, "-c", statement, *words)]


@pytest.fixture
def bare(python):
    """Return the side of a Python that does nothing, and has the allowance added."""

    def run():
        start = time.perf_counter()
        subprocess.run(python("pass"), check=True)
        return {"wall": time.perf_counter() - start + ALLOWANCE}

    return run


def test_import(ratio, python, bare):
    """``import blkmig`` takes at most 25 ms more than a Python that does nothing."""
    ratio({"import blkmig": python("import blkmig"), "python + 25 ms": bare}, group="import blkmig", max_time=15)


def test_everything(ratio, python, bare):
    """And so does all that sending and receiving files needs."""
    sides = {"send and receive": python(EVERYTHING), "python + 25 ms": bare}
    ratio(sides, group="send and receive loaded", max_time=15)


def test_command(ratio, python):
    """``blkmig --help``, and what Python takes at least."""
    sides = {"blkmig --help": python(COMMAND, "--help"), "python": python("pass")}
    ratio(sides, group="start of the command", max_time=5)


def test_small_disk(ratio, python, tmp_path):
    """``blkmig send`` of 1 MiB to nowhere, from the start of the command to its end, and what Python takes at least."""
    disk = tmp_path / "small.raw"
    disk.write_bytes(b"x" * (1 << 20))
    sent = python(COMMAND, "send", disk, "file:/dev/null", "--progress", "none")
    ratio({"blkmig send": sent, "python": python("pass")}, group="blkmig send, 1 MiB", max_time=5)
