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
FIRST_ALLOWANCE = 0.1
FIRST = """
import sys, threading, blkmig
disks = [blkmig.MemoryBackend(bytearray(1 << 20), name="vda") for _ in range(2)]
with blkmig.incoming("unix:" + sys.argv[1], {"vda": disks[1]}) as incoming:
    receiver = threading.Thread(target=incoming.run)
    receiver.start()
    blkmig.send([disks[0]], incoming.uri)
    receiver.join()
"""
COMMAND = "import sys; from blkmig.cli import main; sys.exit(main())"


@pytest.fixture
def python(arena):
    """Return the command of a Python that runs a statement."""
    job = arena.job(arena.folder)
    return lambda statement, *words: [str(word) for word in jobs.python(job, "-c", statement, *words)]


@pytest.fixture
def bare_and(python):
    """Return the side of a Python that does nothing, and has an allowance added."""

    def side(allowance):
        def run():
            start = time.perf_counter()
            subprocess.run(python("pass"), check=True)
            return {"wall": time.perf_counter() - start + allowance}

        return run

    return side


def test_import(ratio, python, bare_and):
    """``import blkmig`` takes at most 25 ms more than a Python that does nothing."""
    sides = {"import blkmig": python("import blkmig"), "python + 25 ms": bare_and(ALLOWANCE)}
    ratio(sides, group="import blkmig", max_time=15)


def test_everything(ratio, python, bare_and):
    """And so does all that sending and receiving files needs."""
    sides = {"send and receive": python(EVERYTHING), "python + 25 ms": bare_and(ALLOWANCE)}
    ratio(sides, group="send and receive loaded", max_time=15)


def test_first_migration(ratio, python, bare_and, tmp_path):
    """The first send and the first receive of a process, both in one, take at most 100 ms more: most are imports."""
    sides = {"first migration": python(FIRST, tmp_path / "socket"), "python + 100 ms": bare_and(FIRST_ALLOWANCE)}
    ratio(sides, group="first send and receive", max_time=15)


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
