# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``blkmig`` command as a process of its own, for tests that need the real thing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

TIMEOUT = 60.0
ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object that it printed; fails, with what it said, if it did not succeed."""
        assert self.exit_code == 0, self.stderr
        parsed: dict[str, Any] = json.loads(self.stdout)
        return parsed


def start(*arguments: str | os.PathLike[str], stdin: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start ``blkmig`` with pipes on stdout and stderr."""
    return subprocess.Popen(
        command(*arguments),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def command(*arguments: str | os.PathLike[str]) -> list[str]:
    """Return the words of the command line."""
    return [sys.executable, "-m", "blkmig", *map(os.fspath, arguments)]


def environment() -> dict[str, str]:
    """Return an environment in which the command finds this package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def run(*arguments: str | os.PathLike[str]) -> Outcome:
    """Run ``blkmig`` to its end."""
    return finish(start(*arguments))


def finish(process: subprocess.Popen[bytes], stderr: bytes = b"") -> Outcome:
    """Wait for a command; `stderr` is what was read of it already."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"blkmig does not end: {(stderr + err).decode()}") from None
    return Outcome(process.returncode, out.decode(), (stderr + err).decode())


class Receiver:
    """A ``blkmig receive`` that listens; `uri` is where."""

    def __init__(self, uri: str, *arguments: str | os.PathLike[str]) -> None:
        """Start it and wait until it listens."""
        self.process = start("receive", "--json", "--progress=none", uri, *arguments)
        assert self.process.stderr is not None
        self._stderr = self.process.stderr.readline()
        words = self._stderr.decode().split()
        if words[:2] != ["listening", "on"]:
            raise AssertionError(f"blkmig receive does not listen: {self.finish().stderr}")
        self.uri = words[2]

    def read_until(self, words: str) -> str:
        """Read what it says up to the line that has these words, or to its end, and return all of it."""
        assert self.process.stderr is not None
        while words not in self._stderr.decode() and (line := self.process.stderr.readline()):
            self._stderr += line
        return self._stderr.decode()

    def finish(self) -> Outcome:
        """Wait for its end."""
        return finish(self.process, self._stderr)


@contextlib.contextmanager
def receiver(uri: str, *arguments: str | os.PathLike[str]) -> Iterator[Receiver]:
    """Start a receiver; nothing of it is left behind."""
    listening = Receiver(uri, *arguments)
    try:
        yield listening
    finally:
        if listening.process.poll() is None:
            listening.process.kill()
        listening.process.communicate()
