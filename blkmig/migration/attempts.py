# SPDX-License-Identifier: GPL-2.0-or-later
"""The pauses that did not bring a migration to its end: how many may be tried, and what is said of them."""

from __future__ import annotations

from typing import Final

from .. import units

MAX_GIVEN_UP: Final = 3
"""So many pauses may take too long, each of which holds the writers up for as long as the bound allows."""

MAX_LOST: Final = 10
"""In so many pauses the link may be lost. It came back each time, but the writers pay for every one."""


class Attempts:
    """The pauses of one migration that did not end it. Migration thread only."""

    def __init__(self) -> None:
        self._given_up = self._lost = 0

    def given_up(self) -> None:
        """Count a pause that took too long."""
        self._given_up += 1

    def lost(self) -> None:
        """Count a pause in which the link was lost, and came back."""
        self._lost += 1

    @property
    def count(self) -> int:
        """All of them."""
        return self._given_up + self._lost

    @property
    def are_too_many(self) -> bool:
        """Whether no more pause may be tried."""
        return self._given_up >= MAX_GIVEN_UP or self._lost >= MAX_LOST

    def describe(self, bound: float) -> str:
        """Return what is said of them behind what else is said, "" if there are none; `bound` is in seconds."""
        said = ""
        if self._given_up:
            times = "a pause was" if self._given_up == 1 else f"{self._given_up} pauses were"
            said += f"; {times} given up after {units.format_duration(bound)}: look whether the target hangs"
        if self._lost:
            said += f"; the link was lost in {units.counted(self._lost, 'pause')}: look at what breaks it"
        return said
