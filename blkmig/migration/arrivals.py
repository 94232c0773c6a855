# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver sees of rounds, and the maps of its disks. The thread that loads writes; whoever draws reads.

A stream does not say where a round begins. But each round visits the disks in their order, and each disk from its begin
to its end: so a block that comes at, or before, the place of the one before it begins another round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from .. import block, diskmap, stats


class Arrivals:
    """The maps and the rounds of one stream. `clock` is in seconds, and `transferred` what has come by now, in
    bytes."""

    def __init__(self, clock: Callable[[], float], transferred: Callable[[], int]) -> None:
        self.maps: dict[str, diskmap.ArrivedMap] = {}
        self.rounds: list[stats.RoundStatistics] = []
        self._clock, self._transferred = clock, transferred
        self._last = (0, -1)
        self._began = (0.0, 0)

    def watch(self, name: str, device: block.BlkLoadDevice) -> None:
        """Draw a map of a disk, the next one of the stream."""
        found = diskmap.ArrivedMap(functools.partial(self._at, len(self.maps)))
        self.maps[name] = device.coverage.map = found

    def begin_anew(self) -> None:
        """Forget the disks: they come from the beginning once more, in rounds that go on."""
        self.close_round()
        self.maps.clear()
        self._last = (1 << 62, 0)

    def close_round(self) -> None:
        """Note how long the present round has taken by now, and what has come."""
        if self.rounds:
            since, position = self._began
            self.rounds[-1].seconds = self._clock() - since
            self.rounds[-1].transferred = self._transferred() - position

    def _at(self, disk: int, number: int) -> None:
        place = (disk, number)
        if place <= self._last or not self.rounds:
            self.close_round()
            self._began = (self._clock(), self._transferred())
            self.rounds.append(stats.RoundStatistics(self.rounds[-1].number + 1 if self.rounds else 0, 0))
            del self.rounds[1 : len(self.rounds) - stats.MAX_ROUNDS_KEPT]
        self._last = place
