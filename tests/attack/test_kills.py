# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of either end before and behind each message of a session, in both directions; then what an operator does.

Equal, or not complete, or "in doubt" with what to do; never two owners; never a wrong disk with exit code 0; and the
next plain try works. `kills_run.py` makes the migrations, `kill_points.py` names the messages. A plain run of each kind
counts what is said, so a new kind of message is noticed here. In CI a part is killed, with ``--long`` all of it: then
``-s`` shows what each became.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import command
import kill_points
import pytest

HERE = pathlib.Path(__file__).parent
ENDS = ("send", "receive")

SAID = {
    "send": {
        *("QEVM", "configuration", "OPEN_RETURN_PATH", "PING blk2", "PING aliv", "PING tree", "START", "TABLE", "PART"),
        *("DEVICE_BLOCK", "blocks", "ZERO_BLOCK", "PACK", "BARRIER", "FLUSH", "END", "COMMIT", "section's end"),
        *("description", "PROOF", "PROVEN", "blkS", "blkR", "ASK", "SAME", "BUNDLE", "blkB"),
        "goodbye",
    },
    "receive": {
        *("HELLO", "ALIVE", "REPLY", "SESSION", "ACK", "READY", "DONE", "PONG", "PROOF RESULT", "RESUMED", "DIGEST"),
        *("BUNDLE READY", "BUNDLED", "ERROR", "SHUT"),
    },
}
"""What each end says in the kinds of migrations together."""

TWICE = {"READY", "PART", "SESSION", "COMMIT", "DONE"}
"""What may come twice, and is another thing then."""

QUICK = {"move": 6, "proven move": 3}
"""So many kills of these kinds are made where nobody asked for the long form, besides those of `FOUND`."""

FOUND = {
    ("move", "receive", "DONE", 1, False, "send", "resume"),
    ("proven move", "send", "PROVEN", 1, False, "send", "anew"),
}
"""What was wrong once."""

Points = dict[str, dict[str, int]]


def run(folder: pathlib.Path, plans: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Carry plans out, see `striker.Plan`, and return how they went."""
    path = os.pathsep.join([command.environment()["PYTHONPATH"], str(HERE.parent / "support")])
    done = subprocess.run(
        [sys.executable, HERE / "kills_run.py", folder],
        env=os.environ | {"PYTHONPATH": path},
        input="".join(json.dumps(plan) + "\n" for plan in plans),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def plain(folder: pathlib.Path, kinds: Iterable[str]) -> dict[str, Points]:
    """Return how often each end says what, of each kind of migration; nothing is killed."""
    found = {}
    for result in run(folder / "plain", [(kind, "", "", 0, False, "", "", 1) for kind in kinds]):
        ends_early = bool(kill_points.KINDS[result["plan"][0]].only)
        assert result["outcome"] == ("not complete" if ends_early else "equal"), story([result])
        assert not result["faults"], story([result])
        found[result["plan"][0]] = {end: dict(collections.Counter(result["said"][end])) for end in ENDS}
    return found


def plans_of(kind: str, points: Points, rng: random.Random) -> list[tuple[Any, ...]]:
    """Return a kill of either end, before and behind each message of a kind of migration."""
    return [
        (kind, end, message, nth, is_after, victim, rng.choice(kill_points.RECOVERIES), rng.randrange(1 << 32))
        for end in ENDS
        for message, count in points[end].items()
        if message in (kill_points.KINDS[kind].only or points[end])
        for nth in range(1, 1 + (min(count, 2) if message in TWICE else 1))
        for is_after in (False, True)
        for victim in ENDS
    ]


def story(results: list[dict[str, Any]]) -> str:
    """Return what is wrong with these runs, for a person; "" if nothing is."""
    lines = []
    for result in results:
        ends_early = kill_points.KINDS[result["plan"][0]].only  # the other end may have gone before the last word
        if result["faults"] or (result["outcome"] == "never came" and not ends_early):
            lines.append(f"{result['plan']}: {result['outcome']}; {'; '.join(result['faults'])}")
            for each in result["commands"]:
                lines.append(f"    {' '.join(each['words'])} -> {each['code']}: {each['said'].strip()[-700:]}")
    return "\n".join(lines)


def table(results: list[dict[str, Any]]) -> str:
    """Return what the kills at each message became."""
    found: dict[tuple[str, ...], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        _, end, message, nth, is_after, victim, *_ = result["plan"]
        found[f"{end}s {message} {nth}", "behind" if is_after else "before", victim][result["outcome"]] += 1
    lines = [f"{' | '.join(key)} | {dict(outcomes)}" for key, outcomes in sorted(found.items())]
    return "\n".join([f"{len(results)} kills", *lines])


def check(results: list[dict[str, Any]], seed: int) -> None:
    print(table(results))
    assert any(result["outcome"] != "never came" for result in results)
    if wrong := story(results):
        pytest.fail(f"seed {seed}\n{wrong}", pytrace=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the kinds of migrations."""
    if "kind" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--long")
        metafunc.parametrize("kind", list(kill_points.KINDS if is_long else QUICK))


def test_either_end_at_each_message(tmp_path: pathlib.Path, kind: str, is_long: bool) -> None:
    """A12, B9."""
    seed = random.randrange(1 << 32) if is_long else 1
    print(f"seed {seed}")
    rng = random.Random(seed)
    plans = plans_of(kind, plain(tmp_path, [kind])[kind], rng)
    again = [(*found, 1) for found in sorted(FOUND) if found[0] == kind]
    check(run(tmp_path / "killed", again + (plans if is_long else rng.sample(plans, QUICK[kind]))), seed)


def test_all_that_is_said_is_known(tmp_path: pathlib.Path) -> None:
    """A new message has to be killed at, too: add it here, and a kind of migration in which it is said."""
    found = plain(tmp_path, kill_points.KINDS)
    for end in ENDS:
        assert {message for points in found.values() for message in points[end]} == SAID[end]
