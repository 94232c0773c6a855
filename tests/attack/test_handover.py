# SPDX-License-Identifier: GPL-2.0-or-later
"""The end in four messages, with either end killed, or the link lost, before and after each of them: never two owners.

Both ends are forked children. The one that is the victim kills itself, or shuts the link down, where a step of the end
begins or is over. What the other one says, and what a receiver finds that comes afterwards, is looked at here.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import lab
import pytest
import session_states
from pauses import outcome_of_write

import blkmig
from blkmig import errors
from blkmig.files import partial, sessionfile
from blkmig.migration import made, pause, questions, sessions, taking, targets
from blkmig.savevm import commands

MIB = lab.MIB
CONTENT = b"".join(bytes([number]) * 5000 + bytes(MIB - 5000) for number in range(1, 4))
LONG_RUNS = 200

SOURCE: dict[str, tuple[type, str]] = {
    "END": (questions.Questions, "begin_end"),
    "note": (sessions.SessionFiles, "store"),
    "READY": (questions.Questions, "end_barrier"),
    "decision": (pause.Pause, "begin_commit"),
    "COMMIT": (questions.Questions, "commit"),
    "DONE": (questions.Questions, "await_done"),
    "refusal": (pause.Pause, "refuse"),
}
TARGET: dict[str, tuple[type, str]] = {
    "END": (taking.Taking, "_take_end"),
    "READY": (commands.Commands, "ready"),
    "COMMIT": (taking.Taking, "_take_commit"),
    "committing": (sessions.SessionFiles, "store"),
    "names": (made.MadeTargets, "give_names"),
    "name": (partial.Partial, "publish"),
    "unlock": (targets.TargetSet, "close"),
    "DONE": (commands.Commands, "done"),
    "marks": (made.MadeTargets, "confirm"),
    "removal": (sessions.SessionFiles, "remove"),
}
POINTS = [("source", name) for name in SOURCE] + [("target", name) for name in TARGET]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(owner: type, method: str, what: Callable[[], None], *, after: bool) -> None:
    """Have `what` happen once where `method` of `owner` is called, or where it has returned."""
    original, calls = getattr(owner, method), iter([True])

    @functools.wraps(original)
    def struck(*args: Any, **options: Any) -> Any:
        is_now = method != "end_barrier" or options.get("all_is_sent", False)
        is_first = is_now and next(calls, False)
        if is_first and not after:
            what()
        result = original(*args, **options)
        if is_first and after:
            what()
        return result

    setattr(owner, method, struck)


def fork(report: Path, body: Callable[[], dict[str, Any]]) -> int:
    """Run `body` in a child and return its pid; the child leaves what `body` returns in `report`."""
    return forks.start(lambda: report.write_text(json.dumps(body())))


class Case:
    """A disk of the source, two targets, and what both ends have said."""

    def __init__(self, folder: Path, *, moves: bool) -> None:
        self.folder = folder
        self.moves = moves
        self.uri = f"unix:{folder}/s"
        self.source = folder / "source" / "s.raw"
        self.targets = {name: folder / name / f"{name}.raw" for name in ("one", "two")}
        for path in (self.source, *self.targets.values()):
            path.parent.mkdir()
        self.source.write_bytes(CONTENT)

    def receiver(self, **options: Any) -> blkmig.IncomingMigration:
        parameters = blkmig.IncomingParameters(accept_timeout=20, **options)
        return blkmig.IncomingMigration(self.uri, {name: str(path) for name, path in self.targets.items()}, parameters)

    def send(self) -> dict[str, Any]:
        """Send, and say how it ended and what a writer may do then."""
        two = blkmig.MemoryBackend(bytearray(CONTENT), name="two")
        with blkmig.FileBackend(self.source, name="one") as one:
            after = "refuse" if self.moves else "release"
            options: dict[str, Any] = {"writers_after": after, "connect_timeout": 20, "downtime_limit": 30}
            options["reconnect"] = 0
            outcome = outcome_of(lambda: blkmig.send([one, two], self.uri, **options))
            return {"outcome": outcome, "writes": outcome_of_write(one)}

    def receive(self, ready: int) -> dict[str, Any]:
        with self.receiver() as receiver:
            os.write(ready, b"!")
            return {"outcome": outcome_of(receiver.run)}

    def run(self, side: str, point: str, what: Callable[[], None], *, after: bool) -> tuple[Any, Any]:
        """Let both ends run, one of which meets `what`; return what they say, None for one that was killed."""
        reading, writing = os.pipe()
        reports = {each: self.folder / f"{each}.json" for each in ("source", "target")}

        def child(each: str, body: Callable[[], dict[str, Any]]) -> int:
            def run() -> dict[str, Any]:
                if each == side:
                    at(*{"source": SOURCE, "target": TARGET}[side][point], what, after=after)
                return body()

            return fork(reports[each], run)

        target = child("target", lambda: self.receive(writing))
        os.close(writing)
        assert os.read(reading, 1) == b"!"
        os.close(reading)
        for pid in (child("source", self.send), target):
            os.waitpid(pid, 0)
        said = [json.loads(path.read_text()) if path.exists() else None for path in reports.values()]
        return said[0], said[1]

    def note(self) -> str | None:
        """Return what the source's session file says; None if there is none."""
        return session_states.state_of(self.source)

    def settle(self) -> bool:
        """Meet what was left at the target, as any receiver does; return whether it had taken the disks."""
        state = session_states.state_of(self.targets["one"])
        try:
            with self.receiver():
                return state == "committed" or (state is None and self.has_all())
        except errors.InDoubt:
            assert state == "committing"
            return True

    def has_all(self) -> bool:
        return all(path.exists() and path.read_bytes() == CONTENT for path in self.targets.values())


def outcome_of(call: Callable[[], object]) -> str:
    try:
        call()
    except errors.InDoubt:
        return "in doubt"
    except errors.MigrationError:
        return "failed"
    return "done"


def check(case: Case, source: dict[str, Any] | None, target: dict[str, Any] | None) -> None:
    """Hold what both ends say against each other, and against what is there."""
    note = case.note()
    has_taken = target["outcome"] == "done" if target is not None else case.settle()
    assert not has_taken or case.has_all(), "complete, and not equal"
    if target is not None and target["outcome"] == "failed":
        assert not case.settle(), "it fails, and a restart takes the disks"
    assert target is None or target["outcome"] != "in doubt", "nothing was wrong with the storage"
    if source is None:
        assert note == "noted" or not case.moves or not has_taken, "killed without a note, and the disk has moved"
        return
    if source["outcome"] == "done":
        assert has_taken, "the source is done, and the target has nothing"
    if not case.moves:
        assert source["outcome"] in ("done", "failed")
        assert source["writes"] == "done", "a copy holds nobody"
        return
    owns = {"done": "refused", "in doubt": "held", "failed": "done"}[source["outcome"]]
    assert source["writes"] == owns
    assert source["outcome"] != "failed" or not has_taken, "two owners"
    assert (note == "noted") == (source["outcome"] == "in doubt"), "what a later process finds"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the cases: all of them, or of copies those that CI has time for."""
    if "point" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--long")
        cases = [
            (side, point, how, after, moves)
            for side, point in POINTS
            for how in ("killed", "link lost")
            for after in (False, True)
            for moves in (True, False)
            if moves or is_long or (point in ("COMMIT", "DONE") and how == "killed")
            if moves or point not in ("note", "decision", "refusal")
        ]
        ids = [f"{side}-{point}-{'after' if after else 'before'}-{how}-{'move' if moves else 'copy'}"
               for side, point, how, after, moves in cases]  # fmt: skip
        metafunc.parametrize(("side", "point", "how", "after", "moves"), cases, ids=ids)


def test_either_end_at_each_message(
    tmp_path: Path, side: str, point: str, how: str, after: bool, moves: bool
) -> None:
    case = Case(tmp_path, moves=moves)
    source, target = case.run(side, point, die if how == "killed" else forks.lose_the_link, after=after)
    if how == "killed":
        assert {"source": source, "target": target}[side] is None, "it was not killed"
    check(case, source, target)


@pytest.mark.parametrize("moves", [True, False])
def test_undisturbed(tmp_path: Path, moves: bool) -> None:
    """Both know, nothing is left over."""
    case = Case(tmp_path, moves=moves)
    source, target = case.run("source", "END", lambda: None, after=True)
    check(case, source, target)
    assert (source["outcome"], target["outcome"]) == ("done", "done")
    assert {path.name for path in case.folder.glob("*/.*")} == set()


def test_kills_spread_over_the_messages(tmp_path: Path, is_long: bool) -> None:
    """Of either end, of copies and of moves, and the moment is chance."""
    seed = random.randrange(1 << 32) if is_long else 1
    print(f"seed {seed}")
    rng = random.Random(seed)
    for number in range(LONG_RUNS if is_long else 2):
        (tmp_path / str(number)).mkdir()
        case = Case(tmp_path / str(number), moves=rng.random() < 0.7)
        side, point = rng.choice(POINTS)
        source, target = case.run(side, point, die, after=rng.random() < 0.5)
        check(case, source, target)


def test_killed_again_while_names_are_given(tmp_path: Path) -> None:
    """A receiver that meets the file is killed at the same work; the one after it ends it."""
    case = Case(tmp_path, moves=True)
    _, target = case.run("target", "name", die, after=True)
    assert target is None
    for point in ("link", "store"):
        def meet(point: str = point) -> dict[str, Any]:
            owner = {"link": sessionfile.folder.Folder, "store": sessionfile.SessionFile}[point]
            at(owner, point, die, after=point == "link")
            case.settle()
            return {}

        os.waitpid(fork(tmp_path / "met.json", meet), 0)
        assert not (tmp_path / "met.json").exists()
    assert case.settle()
    assert case.has_all()
