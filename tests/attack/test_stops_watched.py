# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a command writes beside its migration, metrics, a report, a log, its result, fails at any call, as where the
disk is full: the migration ends as it would, both commands say so, and what was begun of these files is gone.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import forks
import lab
import pytest
import stop_runs
from forks import has_ended, text_of, wait

from blkmig import ownfile
from blkmig.cli import logfile

pytest.importorskip("prometheus_client")

MIB = lab.MIB
SECONDS, LONG_SECONDS = 2.0, 120.0
SOON = 20.0
CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.ENOMEM)
VERBS = ("open", "write", "fchmod", "replace")


class Failing:
    """The system calls of those files, each of which fails from a number on, or for a while."""

    def __init__(self, rng: random.Random) -> None:
        self._verb = rng.choice(VERBS)
        self._first = rng.choice((0, 0, 1, 2, 3, 5, 8))
        self._last = self._first + rng.choice((0, 1, 1000, 1000))
        self._code = rng.choice(CODES)
        self._calls = 0
        self.text = f"{self._verb} {self._first}..{self._last}: {errno.errorcode[self._code]}"

    def begin(self) -> None:
        """Have them fail in this process."""
        real_open, real_write, real_chmod = os.open, os.write, os.fchmod
        real_replace, real_fdopen = Path.replace, os.fdopen
        ours = _Os(os)
        ours.open = lambda path, flags, *more, **named: self._call(
            "open" if flags & (os.O_WRONLY | os.O_RDWR) else "", real_open, path, flags, *more, **named
        )
        ours.write = lambda *args: self._call("write", real_write, *args)
        ours.fchmod = lambda *args: self._call("fchmod", real_chmod, *args)

        def fdopen(fd: int, mode: str, *more: Any, **named: Any) -> Any:
            file = real_fdopen(fd, mode, *more, **named)
            return _File(file, self) if "w" in mode else file

        ours.fdopen = fdopen
        for module in (ownfile, logfile):
            module.os = ours  # type: ignore[attr-defined]
        Path.replace = lambda path, target: self._call("replace", real_replace, path, target)  # type: ignore[method-assign]

    def _call(self, verb: str, real: Any, *args: Any, **named: Any) -> Any:
        self.check(verb)
        return real(*args, **named)

    def check(self, verb: str) -> None:
        """Fail if it is this one's turn."""
        if verb == self._verb:
            self._calls += 1
            if self._first < self._calls <= self._last + 1:
                raise OSError(self._code, os.strerror(self._code))


class _Os:
    """The module, with calls of its own."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _File:
    """A file whose writes may fail."""

    def __init__(self, file: Any, failing: Failing) -> None:
        self._file, self._failing = file, failing

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        """Write a part, and fail."""
        try:
            self._failing.check("write")
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return int(self._file.write(data))


class Case:
    """A sender and a receiver, of which each writes metrics, a report and a log."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.folder = folder
        self._what = {end: rng.sample(("metrics", "report", "log-json"), rng.choice((1, 2, 3))) for end in ("s", "r")}
        self._failing = {end: Failing(rng) if rng.random() < 0.7 else None for end in ("s", "r")}
        self._full = {end: rng.random() < 0.2 for end in ("s", "r")}
        self._options = rng.choice(([], ["--move"], ["--verify"]))
        self.text = ", ".join(
            f"{end}: {' '.join(self._what[end])}, {failing and failing.text}, full stdout {self._full[end]}"
            for end, failing in self._failing.items()
        )

    def _words(self, end: str) -> list[str]:
        return [f"--{what}={self.folder}/{end}-{what}" for what in self._what[end]]

    def _start(self, end: str, words: list[str], log: Path) -> int:
        """Fork a child that runs the command of an end; return its pid."""
        failing, result = self._failing[end], "/dev/full" if self._full[end] else ""
        return forks.command(words, log, result=result, begin=failing.begin if failing else lambda: None)

    def play(self) -> None:
        """Run both commands, and look at what they say."""
        source, target = self.folder / "d.raw", self.folder / "into" / "d.raw"
        source.write_bytes(self.rng.randbytes(2 * MIB + 512))
        target.parent.mkdir()
        logs = {end: self.folder / f"{end}.out" for end in ("s", "r")}
        receive = ["receive", "--progress=none", *self._words("r"), f"unix:{self.folder}/u", f"d={target}"]
        receive += ["--verify"] if self._options == ["--verify"] else []
        send = ["send", "--progress=none", *self._words("s"), *self._options, str(source), f"unix:{self.folder}/u"]
        pids = {"r": self._start("r", receive, logs["r"])}
        try:
            end = time.monotonic() + SOON
            while "listening on" not in text_of(logs["r"]) and time.monotonic() < end and not has_ended(pids["r"]):
                time.sleep(0.002)
            pids["s"] = self._start("s", send, logs["s"])
            codes = {}
            for who in ("s", "r"):
                if who == "r" and codes["s"] == 2:  # it has not begun
                    os.kill(pids["r"], signal.SIGTERM)
                codes[who] = wait(pids.pop(who), time.monotonic() + SOON)
        finally:
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        said = {who: text_of(logs[who]) for who in ("s", "r")}
        self._look(codes, said, source, target)

    def _look(self, codes: dict[str, int | None], said: dict[str, str], source: Path, target: Path) -> None:
        told = f"{codes}, {said}"
        for who, text in said.items():
            assert "Traceback" not in text, told
            assert "defect" not in text, told
            assert codes[who] is not None, f"{who} does not end: {told}"
        is_begun = codes["s"] != 2 and codes["r"] != 2
        if is_begun:
            assert target.exists(), told
            assert target.read_bytes() == source.read_bytes(), told
            for who, code in codes.items():
                assert code == (1 if self._full[who] else 0), told
        left = [path.name for path in self.folder.iterdir() if "blkmig-new" in path.name]
        assert not left, f"{left}: {told}"


def test_what_is_written_beside_a_migration_fails(tmp_path: Path, is_long: bool) -> None:
    first = stop_runs.first_seed(is_long=is_long)
    end = time.monotonic() + (LONG_SECONDS if is_long else SECONDS)
    for seed in range(first, first + (1 << 20)):
        (tmp_path / str(seed)).mkdir()
        case = Case(tmp_path / str(seed), seed)
        try:
            case.play()
        except BaseException as error:
            error.add_note(f"seed {seed}: {case.text}")
            raise
        if time.monotonic() > end:
            break
