# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of either end at each phase, then the same once more: equal contents, exact size, nothing left over.

The end that dies is a forked child that kills itself where a phase begins; the other end and the second run are here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import command
import forks
import lab
import peers
import pytest

import blkmig
from blkmig import block, errors
from blkmig.files import partial, sessionfile
from blkmig.migration import completing, questions, rounds, targets
from blkmig.nbd import image

MIB = lab.MIB
SIZE = 66 * MIB + 512
"""More than a step in which a target grows."""

LONG_RUNS = 200

RECEIVER = {
    "setup": (blkmig.IncomingMigration, "run", 1),
    "first block": (block.BlkLoadDevice, "load_block", 1),
    "bulk": (block.BlkLoadDevice, "load_block", 4),
    "last block": (block.BlkLoadDevice, "load_block", 7),
    "size": (block.BlkLoadDevice, "settle", 1),
    "flush": (targets.TargetSet, "check_sizes", 1),
    "ready": (targets.TargetSet, "check_takeable", 1),
    "commit": (targets.TargetSet, "take", 1),
    "rename": (partial.Partial, "publish", 1),
    "word": (partial.Partial, "confirm", 1),
}
SENDER = {
    "setup": (blkmig.OutgoingMigration, "run", 1),
    "bulk": (rounds.Rounds, "iterate", 1),
    "last pass": (completing.Completing, "attempt", 1),
    "ready": (questions.Questions, "end_barrier", 1),
    "word": (questions.Questions, "await_done", 1),
}
QUICK = {
    "new": {*RECEIVER, *SENDER},
    "empty": {"bulk", "commit", "word"},
    "existing": {"bulk", "flush"},
    "into": {"bulk", "rename", "word"},
    "qcow2": {"bulk", "rename", "last pass"},
}
"""The phases that each kind of target is killed in where nobody asked for the long form."""


def disk_content() -> bytes:
    """Return a disk of seven blocks of data, the last one at its very end; with holes they would go in pieces."""
    content = bytearray(SIZE)
    rng = random.Random(12)
    for start in (0, 3 * MIB, 20 * MIB, 40 * MIB, 62 * MIB, 63 * MIB, SIZE - MIB):
        content[start : start + MIB] = rng.randbytes(MIB)
    return bytes(content)


CONTENT = disk_content()


def die_at(owner: type, method: str, count: int) -> None:
    """Have this process killed when `method` is called the `count`-th time."""
    original, calls = getattr(owner, method), iter(range(1, count + 1))

    @functools.wraps(original)
    def dying(*args: Any, **options: Any) -> Any:
        if next(calls, count) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, method, dying)


def wait_killed(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"it was not killed: {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL


class Case:
    """One disk, its target of a kind, and the two commands."""

    def __init__(self, tmp_path: Path, kind: str) -> None:
        self.kind = kind
        self.folder = tmp_path / "d"
        self.folder.mkdir()
        self.uri = f"unix:{tmp_path}/s"
        self.source = lab.sparse_file(tmp_path / "source.raw", CONTENT)
        self.target = self.folder / "v.raw"
        if kind == "empty":
            self.target.touch()
            self.target.chmod(0o640)
        elif kind == "existing":
            lab.sparse_file(self.target, b"k" * MIB + bytes(SIZE - MIB))
        elif kind == "qcow2":
            peers.require("qemu-nbd")

    def receiver(self) -> blkmig.IncomingMigration:
        text = f"{self.target},format=qcow2" if self.kind == "qcow2" else str(self.target)
        where: dict[str, Any] = {"into": self.folder} if self.kind == "into" else {}
        parameters = blkmig.IncomingParameters(accept_timeout=20)
        return blkmig.IncomingMigration(self.uri, {} if where else {"v": text}, parameters, **where)

    def send(self) -> None:
        with blkmig.open_disk(self.source, name="v", writable=False) as disk:
            blkmig.send([disk], self.uri, connect_timeout=20, reconnect=0)

    def is_through(self) -> bool:
        """Whether a disk has its name, and no session any more: its receiver was killed on the way out."""
        session = self.folder / sessionfile.session_name("v.raw")
        return self.kind == "into" and self.target.exists() and not session.exists()

    def run_again(self) -> None:
        """Run both commands and look at what is there; a target that had the disk when it was killed says so."""
        session = sessionfile.session_name("v.raw")
        try:
            self._run()
        except errors.InDoubt:
            self.check(session)
            self.folder.joinpath(session).unlink()
        self.check()

    def _run(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                receiver = self.receiver()
                receiver.__enter__()
                break
            except errors.DeviceBusy:  # the qemu-nbd of the killed one closes its image
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with contextlib.ExitStack() as stack:
            stack.push(receiver)
            thread = threading.Thread(target=self._send_again, daemon=True)
            thread.start()
            receiver.run()
            thread.join(20)

    def _send_again(self) -> None:
        with contextlib.suppress(errors.TargetFailed):  # the receiver tells why
            self.send()

    def check(self, *others: str) -> None:
        if self.kind == "qcow2":
            with image.ImageBackend(self.target, format="qcow2", writable=False) as disk:
                assert disk.size == SIZE
                assert disk.pread(0, SIZE) == CONTENT
        else:
            assert self.target.stat().st_size == SIZE
            assert self.target.read_bytes() == CONTENT
        assert {path.name for path in self.folder.iterdir()} == {"v.raw", *others}
        if self.kind == "empty":
            assert self.target.stat().st_mode & 0o777 == 0o640


@pytest.fixture
def case(tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    return Case(tmp_path, request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the kinds of targets and the phases: all of them, or those that CI has time for."""
    phases = RECEIVER if metafunc.function is test_a_killed_receiver else SENDER
    if "phase" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--long")
        chosen = [(kind, phase) for kind in QUICK for phase in phases if is_long or phase in QUICK[kind]]
        if phases is RECEIVER:  # what exists has its name already
            chosen = [pair for pair in chosen if pair not in (("existing", "rename"), ("existing", "word"))]
        metafunc.parametrize(("case", "phase"), chosen, indirect=["case"])


def test_a_killed_receiver(case: Case, phase: str) -> None:
    """A12."""
    reading, writing = os.pipe()

    def receive() -> None:
        die_at(*RECEIVER[phase])
        with case.receiver() as receiver:
            os.write(writing, b"!")
            receiver.run()

    pid = forks.start(receive)
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    with contextlib.suppress(errors.MigrationError):
        case.send()
    wait_killed(pid)
    case.run_again()


def test_a_killed_sender(case: Case, phase: str) -> None:
    """A12."""

    def send() -> None:
        die_at(*SENDER[phase])
        case.send()

    with case.receiver() as receiver:
        pid = forks.start(send)
        is_whole = True
        try:
            receiver.run()
        except errors.InDoubt:
            pass  # the sender died when the word was on its way to it
        except errors.MigrationError:
            is_whole = False
        wait_killed(pid)
    if is_whole:
        case.check()  # the sender had everything out, and died when only the word was missing
    else:
        assert case.target.exists() == (case.kind in ("empty", "existing"))
        case.run_again()


def test_killed_at_any_moment(tmp_path: Path, is_long: bool) -> None:
    """A12: the commands themselves, in their own processes, and the moment is chance."""
    seed = random.randrange(1 << 32) if is_long else 12
    print(f"seed {seed}")
    rng = random.Random(seed)
    for number in range(LONG_RUNS if is_long else 2):
        (tmp_path / str(number)).mkdir()
        case = Case(tmp_path / str(number), rng.choice(("new", "empty", "into")))
        where = ["--into", str(case.folder)] if case.kind == "into" else [f"v={case.target}"]
        with command.receiver(case.uri, *where, "--accept-timeout=2") as receiver:
            sender = command.start("send", f"v={case.source}", case.uri, "--max-bandwidth=30M", "--reconnect=0")
            victim = rng.choice((receiver.process, sender))
            time.sleep(rng.random())  # chance, not synchronisation: whatever the moment is, the rest must hold
            victim.kill()
            done = receiver.finish()
            command.finish(sender)
        if done.exit_code and not case.is_through():
            case.run_again()
        else:
            case.check()
