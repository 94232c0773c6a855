# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration played through by arithmetic: bulk, rounds and the pause, as the real one does them.

The disks are cut into cells of neighbouring blocks. What a cursor does to a cell takes a moment, so all that is known
of its marks is when it was passed last; from then on each of its blocks becomes dirty at the rate of its class::

    dirty blocks of a cell at t  =  sum over classes of  count * (1 - exp(-rate * (t - passed at)))

Rates are writes a second to one block. When the rounds end is not modelled, but asked: `convergence.Descent`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from .. import params
from . import convergence

MAX_ROUNDS = 100
STEADY_ROUNDS = 3
"""After so many rounds that leave no less than the one before, the migration will not converge."""

STEADY_SHARE = 0.97


@dataclasses.dataclass(slots=True)
class Cell:
    """Neighbouring blocks: how many of them bulk sends, and how many are written at which rate."""

    data_blocks: float
    classes: list[tuple[float, float]]
    """(blocks, writes a second to each of them)"""

    passed_at: float = 0.0
    zero_blocks: float = 0.0
    """Blocks that bulk reads, and does not send: they hold nothing but zeros."""

    def dirty(self, now: float) -> float:
        """Return the dirty blocks at `now`."""
        passed = now - self.passed_at
        return sum(-count * math.expm1(-rate * passed) for count, rate in self.classes)


def split_zeros(cells: Sequence[Cell], share: float) -> None:
    """Have this share of all data be zeros."""
    for cell in cells:
        cell.zero_blocks = cell.data_blocks * share
        cell.data_blocks -= cell.zero_blocks


class Replay:
    """One migration of `cells` at `speed` blocks a second; the last pass goes at `link_speed`.

    Blocks of zeros are passed at `read_speed`, 0 is at once. The target has what was sent `delay` seconds later.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        parameters: params.MigrationParameters,
        *,
        speed: float,
        link_speed: float,
        read_speed: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self._cells = cells
        self._parameters = parameters
        self._speed = speed
        self._link_speed = link_speed
        self._read_speed = read_speed
        self._delay = delay
        self._threshold = speed * parameters.downtime_limit
        self._descent = convergence.Descent()
        self.now = 0.0
        self.sent = 0.0
        self.rounds = 0
        self.downtime = 0.0
        self.converges = False

    def run(self) -> None:
        """Play it to its end; then the fields say how it went."""
        self._send_bulk()
        self.converges = self._iterate_until_ready()
        if self.converges and 0 < self._pending() <= self._threshold / 2:
            self._send_round()
            if self._pending() > self._threshold:
                self.converges = self._iterate_until_ready()
        left = self._pending()
        self.downtime = left / self._link_speed
        if self._parameters.writers_after == "refuse":  # a move waits for the target's word, a copy does not
            self.downtime += self._delay
        self.now += self.downtime
        self.sent += left

    def _iterate_until_ready(self) -> bool:
        """Send rounds until the pause is due; False if that never is."""
        before, steady = math.inf, 0
        while not self._is_ready(left := self._pending()):
            steady = steady + 1 if left > self._threshold and left >= before * STEADY_SHARE else 0
            before = left
            if steady >= STEADY_ROUNDS or self.rounds >= (self._parameters.max_rounds or MAX_ROUNDS):
                return False
            self._send_round()
        return True

    def _is_ready(self, left: float) -> bool:
        if left > self._threshold:
            return False
        has_time = convergence.has_time(self._parameters, elapsed=self.now, rounds=self.rounds + 1)
        return not has_time or self._descent.has_ended(round(left))

    def _pending(self) -> float:
        return sum(cell.dirty(self.now) for cell in self._cells)

    def _send_bulk(self) -> None:
        for cell in self._cells:
            self._pass(cell, cell.data_blocks)
            self.now += cell.zero_blocks / self._read_speed if self._read_speed else 0.0
        self._descent.round_ended(round(self.sent))

    def _send_round(self) -> None:
        before = self.sent
        for cell in self._cells:
            self._pass(cell, cell.dirty(self.now))
        self._descent.round_ended(round(self.sent - before))
        self.rounds += 1

    def _pass(self, cell: Cell, blocks: float) -> None:
        """Send `blocks` of a cell, one after the other; the marks of each are taken before its time to be sent."""
        seconds = blocks / self._speed
        cell.passed_at = self.now + max(0.0, blocks - 1) / 2 / self._speed
        self.now += seconds
        self.sent += blocks
