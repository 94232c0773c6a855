# SPDX-License-Identifier: GPL-2.0-or-later
"""Small migrations of which one end is killed at a chosen message, and what an operator does then.

::

    kills_run.py FOLDER    reads plans (see `striker.Plan`), one JSON list a line, and prints one JSON object for each

The package is imported once, and each command is a forked child that runs ``blkmig``'s own main. With no message to
strike at, nothing is killed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import forks
import kill_points
import session_states
from forks import has_ended, text_of, wait
from striker import Plan, Striker

from blkmig.files import partial, sessionfile
from blkmig.migration import barriers

KILLED = -signal.SIGKILL
RUN_SECONDS = 60.0
"""A command that takes longer waits without a bound."""

GRACE_SECONDS = 0.4
"""A receiver whose sender has ended has this long to notice; one that still waits is stopped, as an operator would."""

TAKEN_STATES = ("committing", "committed")
MOST_TRIES = 4


class Case:
    """One plan in a folder of its own: a source, a target, and the commands that were given, with how they ended."""

    def __init__(self, place: pathlib.Path, plan: Plan) -> None:
        self.place, self.plan, self.kind = place, plan, kill_points.KINDS[plan.kind]
        self.rng = random.Random(plan.seed)
        self.source, self.target = place / "from" / "a.raw", place / "to" / "copy.raw"
        for path in (self.source, self.target):
            path.parent.mkdir(parents=True)
        kill_points.make_source(self.source, self.rng)
        self.commands: list[dict[str, Any]] = []
        self.living: dict[str, tuple[int, int]] = {}
        """Of each end that runs, its pid and the number of its command."""

        self.said = {"send": "", "receive": ""}
        """What the last command of each end has said."""

        self.faults: list[str] = []

    # -- commands ------------------------------------------------------------------------------------------------------

    def start(self, end: str, *options: str, strikes: Plan | None = None) -> None:
        """Start one end; of a receiver, wait until it listens or has ended."""
        uri, number = f"unix:{self.place}/link", len(self.commands)
        words = [end, uri, f"v={self.target}"] if end == "receive" else [end, f"v={self.source}", uri]
        words += ["--progress=none", *options]
        if end == "send":
            words += [] if any("--reconnect" in word for word in options) else ["--reconnect=1"]
        self.commands.append({"words": words, "code": None, "said": ""})
        log = self.place / f"{number}.out"
        pid = forks.command(words, log, begin=functools.partial(self._begin, end, strikes))
        self.living[end] = pid, number
        deadline = time.monotonic() + RUN_SECONDS
        while end == "receive" and not has_ended(pid) and time.monotonic() < deadline:
            if any(words in text_of(log) for words in kill_points.LISTENS):
                return
            time.sleep(0.002)

    def _begin(self, end: str, strikes: Plan | None) -> None:
        """Do what comes before main, in the child that is an end."""
        barriers.BARRIER_SECONDS = 0.0  # a small disk has barriers, too
        if strikes is not None:
            (self.place / f"{end}.pid").write_text(str(os.getpid()))
            Striker(self.place, end, strikes)

    def end(self, end: str) -> int | None:
        """Wait for an end, and hold what it says against what is there; None if it does not run."""
        if end not in self.living:
            return None
        pid, number = self.living.pop(end)
        code = wait(pid, time.monotonic() + RUN_SECONDS)
        self.said[end] = said = text_of(self.place / f"{number}.out")
        self.commands[number] |= {"code": code, "said": said}
        if code is None:
            self.faults.append(f"{end} does not end")
        if code == 0 and not self.is_equal():
            self.faults.append(f"{end} says that all is well, and the disks differ")
        self.faults += [f"{end}: {fault}" for fault in kill_points.faults_of(code, said)]
        return code

    def stop(self, end: str) -> int | None:
        """End one that waits, as an operator would."""
        if end in self.living and not self._ends_soon(end):
            os.kill(self.living[end][0], signal.SIGTERM)
        return self.end(end)

    def is_over(self, end: str) -> bool:
        """Return whether it has ended, or was never started."""
        return end not in self.living or has_ended(self.living[end][0])

    def _ends_soon(self, end: str) -> bool:
        deadline = time.monotonic() + GRACE_SECONDS
        while not self.is_over(end) and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.is_over(end)

    # -- what there is -------------------------------------------------------------------------------------------------

    def is_equal(self) -> bool:
        """Return whether the target is there under its name, and equal."""
        return self.target.exists() and self.target.read_bytes() == self.source.read_bytes()

    def has_taken(self) -> bool:
        """Return whether the target owns the disk, by its own file: nothing takes it back from there on."""
        return self.target.exists() or self._says(self.target) in TAKEN_STATES

    def note(self) -> pathlib.Path | None:
        """Return the source's file if it says that the disk may have moved."""
        path = self.source.with_name(sessionfile.session_name(self.source.name))
        return path if self._says(self.source) == "noted" else None

    def _says(self, path: pathlib.Path) -> str:
        with contextlib.suppress(Exception):
            return session_states.state_of(path) or ""
        return ""

    def change_target(self) -> bytes:
        """Do what somebody does to the target meanwhile, whatever of it is there; return what the disk holds then."""
        hidden = self.target.with_name(partial.partial_name(self.target.name))
        path = self.target if self.target.exists() or not hidden.exists() else hidden
        if not path.exists():
            path.write_bytes(self.rng.randbytes(self.source.stat().st_size))
        with path.open("r+b") as file:
            for _ in range(5):
                file.seek(self.rng.randrange(max(1, path.stat().st_size - 4096)))
                file.write(self.rng.randbytes(self.rng.choice((1, 4096))))
        return path.read_bytes()

    # -- the course of one ---------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run both ends until one is killed; recover; check; and migrate once more."""
        try:
            return self._run()
        finally:
            for pid, _ in self.living.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _run(self) -> dict[str, Any]:
        plan, kind = self.plan, self.kind
        self.start("receive", *kind.receive, *(["--verify"] if kind.is_refused else []), strikes=plan)
        if kind.is_resumed:
            self._leave_a_part()
        self.start("send", *kind.send, *(["--resume"] if kind.is_resumed else []), strikes=plan)
        outcome = self._recover() if plan.message else self._finish()
        said = {end: text_of(self.place / f"{end}.said").split("\n")[:-1] for end in ("send", "receive")}
        if plan.message and not self.faults:
            self._migrate_plainly()
        struck = (self.place / "struck").exists()
        return {"plan": list(plan), "outcome": outcome, "faults": self.faults, "struck": struck, "said": said,
                "commands": self.commands}  # fmt: skip

    def _leave_a_part(self) -> None:
        """Have a sender be killed right before its END, and change the source a little."""
        ended = Plan(self.plan.kind, "send", "END", 1, False, "send", "", 0)
        self.start("send", *self.kind.send, strikes=ended)
        self.end("send")
        for name in ("send.said", "struck"):
            (self.place / name).unlink()
        with self.source.open("r+b") as file:
            for offset in (5000, kill_points.MIB * 5):
                file.seek(offset)
                file.write(b"changed meanwhile")

    def _finish(self) -> str:
        """Let both ends come to their ends, and say how that is."""
        sent = self.end("send")
        received = self.end("receive") if sent == 0 else self.stop("receive")
        codes = {sent, received}
        if kill_points.IN_DOUBT in codes:
            return "in doubt"
        return "equal" if sent == 0 and received == 0 and self.is_equal() else "not complete"

    def _recover(self) -> str:
        """Do what an operator does when one end was killed; return how it ended."""
        victim = self.plan.victim
        survivor = "receive" if victim == "send" else "send"
        code = self.end(victim)
        if not (self.place / "struck").exists():
            return self._finish_unstruck(survivor)
        if code not in (KILLED, 0) and not self.kind.only:  # those may have ended before
            self.faults.append(f"{victim} was to be killed, and ends with {code}")
        first = len(self.commands)
        if victim == "receive":
            self._replace_receiver()
        else:
            self._replace_sender()
        moved = [each for each in self.commands[first:] if each["words"][0] == "send"]
        outcome = "equal" if self.is_equal() else "not complete"
        codes = {each["code"] for each in self.commands}
        if kill_points.IN_DOUBT in codes:
            outcome = "in doubt"
        elif moved and moved[-1]["code"] != 0:
            outcome = "not complete" if outcome != "equal" else "equal, and the source was not told"
        return outcome

    def _finish_unstruck(self, survivor: str) -> str:
        self.stop(survivor)
        return "never came"

    def _replace_receiver(self) -> None:
        """The receiver was killed: start it again at once, while its sender still tries, or when that has given up."""
        taken = self.has_taken()
        content = None
        if self.plan.recovery == "resume":
            self.start("receive", *self.kind.receive)
        sent = self.end("send")
        self._check_owner(sent, taken=taken)
        if sent == 0 or kill_points.TAKEN in self.said["send"]:  # it was through, and has said so
            self.stop("receive")
            return
        if self.plan.recovery == "changed":
            content = self.change_target()
        self._send_again(taken=taken, content=content)

    def _replace_sender(self) -> None:
        """The sender was killed: go on towards the receiver that waits, or begin both anew."""
        content = None
        if self.plan.recovery != "resume":
            self.stop("receive")
        taken = self.has_taken()
        self._check_owner(KILLED, taken=taken)
        if self.plan.recovery == "changed":
            content = self.change_target()
        self._send_again(taken=taken, content=content)

    def _send_again(self, *, taken: bool, content: bytes | None) -> None:
        """Give the sender's command once more, and the receiver's if it does not run."""
        if self.is_over("receive"):
            self.end("receive")
            self.start("receive", *self.kind.receive)
        sent = None
        if not self.is_over("receive"):
            self.start("send", *self.kind.send, *([] if self.plan.recovery == "anew" else ["--resume"]))
            sent = self.end("send")
        if sent == 0:
            self.end("receive")
        else:
            self.stop("receive")
        if self.kind.moves and taken:
            if sent == 0:
                self.faults.append("two owners: the disk had moved, and its source sends it once more")
            elif content is not None and self.target.exists() and self.target.read_bytes() != content:
                self.faults.append("the disk had moved, and what was written to it since then is gone")
        self._check_owner(sent, taken=self.has_taken() and content is None)

    def _check_owner(self, sent: int | None, *, taken: bool) -> None:
        """Hold what a source says of its disk against who has it."""
        if not self.kind.moves or not taken or sent in (0, None, kill_points.IN_DOUBT):
            return
        if self.note() is None and kill_points.TAKEN not in self.said["send"]:
            how = "was killed" if sent == KILLED else f"ends with {sent}"
            self.faults.append(f"two owners: the target has the disk, and its source {how}, and notes nothing")

    def _migrate_plainly(self) -> None:
        """See that a next plain try works; where a disk may have moved, when somebody has looked and it is a copy."""
        moves = self.kind.moves and self.note() is None
        options = [option for option in self.kind.send if moves or option != "--move"]
        tried = len(self.commands)
        for _ in range(MOST_TRIES):
            self.start("receive", *self.kind.receive)
            sent = received = None
            if not self.is_over("receive"):
                self.start("send", *options)
                sent = self.end("send")
            received = self.end("receive") if sent == 0 else self.stop("receive")
            if sent == received == 0:
                left = {path.name for path in self.target.parent.iterdir()} - {self.target.name}
                if left:
                    self.faults.append(f"a plain try leaves {left}")
                return
            if self.plan.victim == "send" and any(kill_points.TOLD in each["said"] for each in self.commands):
                self.faults.append("the receiver that lived on has told its source who has the disk, and does not know")
            if kill_points.IN_DOUBT not in (sent, received) and kill_points.SETTLED not in self.said["receive"]:
                break
        codes = [(each["words"][0], each["code"]) for each in self.commands[tried:]]
        self.faults.append(f"a next plain try does not work: {codes}")


def plans() -> Iterator[Plan]:
    """Read what is to be done."""
    for line in sys.stdin:
        yield Plan(*json.loads(line))


def main() -> None:
    """Run each plan in a folder of its own, and keep those in which something was wrong."""
    base = pathlib.Path(sys.argv[1])
    forks.import_everything()
    for number, plan in enumerate(plans()):
        place = base / f"{plan.kind.replace(' ', '-')}-{number}"
        result = Case(place, plan).run()
        if not result["faults"]:
            kill_points.remove(place)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
