# SPDX-License-Identifier: GPL-2.0-or-later
"""Every system call of a small migration fails once: one clear error, no wrong success, and the next try works.

A library that is loaded before libc fails the calls (`failing_calls.c`); `failing_run.py` runs the migrations. The
calls are those that both ends make today, found by counting them. In CI a part of each kind is failed, with
``--long`` all of them.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import command
import peers
import pytest

HERE = pathlib.Path(__file__).parent
MIB = 1 << 20
EXIT_CODES = {0, 1, 2, 3, 4, 5, 6, 7}
EXIT_STOPPED = 143

NO_DESCRIPTOR = {"open64", "openat64", "socket", "socketpair", "accept4", "pipe2", "eventfd"}
NO_SPACE = {"write", "writev", "pwrite64", "pwritev64", "fallocate64", "ftruncate64", "splice", "mkdir"}
NO_MEMORY = {"mmap64", "poll", "ppoll", "madvise"}
UNIMPORTANT = {"ioctl", "stat64"}
"""Most of these are the interpreter's own, asking what a descriptor is: a part of them is enough."""

PART = 4
"""In CI every so manyth call of a kind that is made more often than that fails."""


def error_of(name: str) -> int:
    """Return an error that the call may really meet."""
    if name in NO_DESCRIPTOR:
        return errno.EMFILE
    if name in NO_SPACE:
        return errno.ENOSPC
    return errno.ENOMEM if name in NO_MEMORY else errno.EIO


@pytest.fixture(scope="module")
def library() -> Iterator[pathlib.Path]:
    """Build the library that fails calls."""
    if shutil.which("gcc") is None:
        peers.lacking("gcc is not installed, which builds the library that fails system calls")
    with tempfile.TemporaryDirectory(prefix="failing-calls-") as folder:
        built = pathlib.Path(folder, "failing_calls.so")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", built, HERE / "failing_calls.c", "-ldl"], check=True)
        yield built


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a folder with a source of data, zeros and a hole, whose size is not a whole number of blocks."""
    rng = random.Random(7)
    with (tmp_path / "a.raw").open("wb") as source:
        source.write(rng.randbytes(MIB) + bytes(MIB) + rng.randbytes(MIB))
        source.seek(5 * MIB)
        source.write(rng.randbytes(700))
    return tmp_path


Migrations = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def migrations(folder: pathlib.Path, library: pathlib.Path) -> Migrations:
    """Return what runs migrations in which the calls called `name` fail at one end, and returns how they went."""

    def run(end: str, name: str, error: int, *steps: int, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        path = os.pathsep.join([command.environment()["PYTHONPATH"], str(HERE.parent / "support")])
        done = subprocess.run(
            [sys.executable, HERE / "failing_run.py", *options, folder, end, name, str(error), *map(str, steps)],
            env=os.environ | {"PYTHONPATH": path, "LD_PRELOAD": str(library)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def faults(result: dict[str, Any]) -> list[str]:
    """Return what is wrong with how a run ended."""
    codes, said, found = result["codes"], result["said"], []
    allowed = EXIT_CODES | ({EXIT_STOPPED} if result["was_stopped"] else set())
    for end, code in codes.items():
        if code not in allowed:
            found.append(f"{end} does not end" if code is None else f"{end} crashes, exit code {code}")
        if "Traceback" in said[end] or "Exception ignored" in said[end]:
            found.append(f"{end} shows a traceback")
        if "(state is" in said[end]:
            found.append(f"{end} tells of a state of its own")
        if code and "blkmig: " not in said[end] and "write" not in result["failed"]:
            found.append(f"{end} does not say why")
        if code == 0 and not result["equal"]:
            found.append(f"{end} says that all is well, and the disks differ")
    if "again" in result and result["again"] != {"send": 0, "receive": 0, "equal": True}:
        found.append(f"the next try fails: {result['again']}")
    return found


def story(results: list[dict[str, Any]]) -> str:
    """Return what is wrong with these runs, for a person; "" if nothing is."""
    lines = []
    for result in results:
        if found := faults(result):
            lines.append(f"{result['failed']}: {'; '.join(found)}")
            for end, code in result["codes"].items():
                lines.append(f"    {end} ({code}): {result['said'][end].strip()[-600:]}")
    return "\n".join(lines)


@pytest.mark.parametrize("end", ["send", "receive"])
def test_every_call_fails_once(migrations: Migrations, end: str, is_long: bool) -> None:
    """C7, C11, A12: whatever call fails, of either end."""
    (plain,) = migrations(end, "", errno.EIO)
    assert plain["codes"] == {"send": 0, "receive": 0}, plain
    assert plain["equal"]
    results = []
    for name, count in plain["calls"][end].items():
        step = 1 if is_long or count <= PART else PART
        if name in UNIMPORTANT and not is_long:
            step = max(step, count // 3)
        results += migrations(end, name, error_of(name), step)
    assert len(results) >= len(plain["calls"][end])
    if wrong := story(results):
        pytest.fail(wrong, pytrace=False)


ENDS = {
    "a copy": (),
    "a move": ("send=--move",),
    "a proven move": ("--verify", "send=--move"),
    "several connections": ("send=--connections=3",),
    "no session": ("send=--reconnect=0",),
    "the first edition": ("send=--format=block",),
}


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("end", ["send", "receive"])
def test_every_message_that_cannot_be_sent(migrations: Migrations, end: str, kind: str, is_long: bool) -> None:
    """Whoever waits for it sees at once that the link is dead: nobody waits for a time-out, an asker is answered."""
    step = 1 if is_long or end == "receive" else PART - 1  # a sender looks for its target's reason for a second
    if wrong := story(migrations(end, "sendmsg", errno.EIO, step, options=ENDS[kind])):
        pytest.fail(wrong, pytrace=False)


@pytest.mark.parametrize("name", ["send", "recv"])
def test_every_call_that_spreads_a_stream(migrations: Migrations, name: str, is_long: bool) -> None:
    """The thread that has the connections fails, and the one that waits for an answer hears of it."""
    step = 1 if is_long else PART - 1
    if wrong := story(migrations("send", name, errno.EIO, step, options=("send=--connections=3",))):
        pytest.fail(wrong, pytrace=False)


@pytest.mark.parametrize("end", ["send", "receive"])
def test_every_read_and_flush_of_what_is_proven(migrations: Migrations, end: str) -> None:
    """What fails beside the stream, in the thread that reads back, ends it: nobody waits for what is not compared."""
    (plain,) = migrations(end, "", errno.EIO, options=("--verify",))
    results = []
    for name in ("fdatasync", "pread64", "preadv64", "preadv64v2"):
        if name in plain["calls"][end]:
            results += migrations(end, name, errno.EIO, 1, options=("--verify",))
    assert results
    if wrong := story(results):
        pytest.fail(wrong, pytrace=False)


@pytest.mark.parametrize("end", ["send", "receive"])
def test_interrupted_calls_are_made_again(migrations: Migrations, end: str, is_long: bool) -> None:
    """EINTR is no failure."""
    (plain,) = migrations(end, "", errno.EIO)
    for name in ("sendmsg", "recvmsg", "poll", "pread64", "pwrite64", "splice", "sendfile64", "fdatasync", "accept4"):
        if name in plain["calls"][end]:
            for result in migrations(end, name, errno.EINTR, 1 if is_long else PART):
                assert result["codes"] == {"send": 0, "receive": 0}, result
                assert result["equal"], result
