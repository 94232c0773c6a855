# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that parses, for a moment each: all seeds, and so many changes of them. `--long` goes on for minutes.

What found something once is in `FOUND`, and is tried each time.
"""

from __future__ import annotations

import random

import fuzz_targets
import fuzzing
import pytest

ROUNDS = {"load": 40, "inspect": 100, "session-file": 200, "dirty-map": 200}
"""How often a target is tried, where that is not 2000 times."""

FOUND = {
    "session-file": [b"{", b"[" * 3000, b"\xff", b"1e"],
}


@pytest.fixture(scope="module", params=fuzz_targets.TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def seeds(name: str) -> list[bytes]:
    return fuzz_targets.TARGETS[name][1]()


def test_seeds(name: str, seeds: list[bytes]) -> None:
    for seed in [*seeds, b"", *FOUND.get(name, [])]:
        fuzz_targets.TARGETS[name][0](seed)


def test_changed_seeds(name: str, seeds: list[bytes], is_long: bool) -> None:
    start = random.randrange(1 << 32) if is_long else 17
    for number in range(ROUNDS.get(name, 2000) * (100 if is_long else 1)):
        data = fuzzing.mutated(random.Random(start + number), seeds)
        try:
            fuzz_targets.TARGETS[name][0](data)
        except BaseException as error:
            error.add_note(f"target {name!r}, seed {start + number}: {data[:2000]!r}")
            raise
