# SPDX-License-Identifier: GPL-2.0-or-later
"""How many pauses may end before the migration does, and what is said of them."""

from __future__ import annotations

import pytest

from blkmig.migration import attempts


@pytest.mark.parametrize("given_up", range(5))
@pytest.mark.parametrize("lost", [0, 1, 9, 10])
def test_each_kind_has_a_limit_of_its_own(given_up: int, lost: int) -> None:
    found = attempts.Attempts()
    for _ in range(given_up):
        found.given_up()
    for _ in range(lost):
        found.lost()
    assert found.count == given_up + lost
    assert found.are_too_many == (given_up >= 3 or lost >= 10)


def test_what_is_said() -> None:
    found = attempts.Attempts()
    assert found.describe(20.0) == ""
    found.given_up()
    assert found.describe(20.0) == "; a pause was given up after 20.0 s: look whether the target hangs"
    found.lost()
    said = found.describe(20.0)
    assert said.endswith("; the link was lost in 1 pause: look at what breaks it")
    found.given_up()
    assert found.describe(20.0).startswith("; 2 pauses were given up after 20.0 s")
