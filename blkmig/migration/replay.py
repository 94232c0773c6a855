# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration played through by arithmetic: bulk, rounds and the pause, as the real one does them.

The disks are cut into cells of neighbouring blocks. What a cursor does to a cell takes a moment, so all that is known
of its marks is when it was passed last; from then on each of its pieces becomes dirty at the rate of its class::

    dirty blocks of a cell at t  =  sum over classes of  count * (1 - exp(-rate * (t - passed at)))

A piece is a block, or the part of it that a write makes dirty; a block of which most is dirty goes whole (`filling`).
Rates are writes a second to one piece, numbers are blocks all the same, with fractions. When the rounds end is not
modelled, but asked: `convergence.Descent`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from .. import _core, params, stats
from . import autoconverge, convergence, filling

MAX_ROUNDS = 100
STEADY_ROUNDS = 3
"""After so many rounds that leave no less than the one before, the migration will not converge."""

STEADY_SHARE = 0.97


@dataclasses.dataclass(slots=True)
class Cell:
    """Neighbouring blocks: how many of them bulk sends, and how many are written at which rate."""

    data_blocks: float
    classes: list[tuple[float, float]]
    """(blocks, writes a second to each of their pieces)"""

    passed_at: float = 0.0
    """When the cursor passed it last, in the writers' time: that goes slower while they are slowed down."""

    zero_blocks: float = 0.0
    """Blocks that bulk reads, and does not send: they hold nothing but zeros."""

    filling: filling.Filling = filling.UNKNOWN

    def dirty(self, now: float) -> float:
        """Return the blocks to be sent at `now`, in the writers' time: dirty pieces, and what goes along with them."""
        passed = now - self.passed_at
        dirty = sum(-count * math.expm1(-rate * passed) for count, rate in self.classes)
        return dirty + self.filling.going_along(dirty, sum(count for count, _ in self.classes))


def split_zeros(cells: Sequence[Cell], share: float) -> None:
    """Have this share of all data be zeros."""
    for cell in cells:
        cell.zero_blocks = cell.data_blocks * share
        cell.data_blocks -= cell.zero_blocks


class Replay:
    """One migration of `cells` at `speed` blocks a second; the last pass goes at `link_speed`.

    A block has `pieces`, which are sent by themselves. Blocks of zeros are passed at `read_speed`, 0 is at once. The
    target has what was sent `delay` seconds later.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        parameters: params.MigrationParameters,
        *,
        speed: float,
        link_speed: float,
        disk_blocks: float,
        pieces: int = 1,
        read_speed: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self._cells = cells
        self._parameters = parameters
        self._speed = speed
        self._link_speed = link_speed
        self._read_speed = read_speed
        self._delay = delay
        self._pieces = pieces
        self._disk_bytes = round(disk_blocks * _core.BLOCK_SIZE)
        self._threshold = speed * parameters.downtime_limit
        self._descent = convergence.Descent()
        self._throttle = autoconverge.Throttle()
        self._writers_now = 0.0
        self._rounds: list[stats.RoundStatistics] = []
        self.now = 0.0
        self.sent = 0.0
        self.rounds = 0
        self.downtime = 0.0
        self.converges = False

    @property
    def writers_fraction(self) -> float:
        """Return to which part of their speed the writers are slowed down, 1.0 if they are not."""
        return self._throttle.fraction

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
            if steady >= STEADY_ROUNDS or self._has_had_its_time(left):
                return False
            self._send_round()
        return True

    def _has_had_its_time(self, left: float) -> bool:
        if self.rounds >= (self._parameters.max_rounds or MAX_ROUNDS):
            return True
        timeout = self._parameters.timeout
        return timeout is not None and left > self._threshold and self.now >= timeout

    def _is_ready(self, left: float) -> bool:
        if left > self._threshold:
            return False
        has_time = convergence.has_time(self._parameters, elapsed=self.now, rounds=self.rounds + 1)
        return not has_time or self._descent.has_ended(round(left * self._pieces))

    def _pending(self) -> float:
        return sum(cell.dirty(self._writers_now) for cell in self._cells)

    def _send_bulk(self) -> None:
        for cell in self._cells:
            self._pass(cell, cell.data_blocks)
            self._let_pass(cell.zero_blocks / self._read_speed if self._read_speed else 0.0)
        self._round_ended(self._disk_bytes, self.sent, self.now)

    def _send_round(self) -> None:
        sent, now, dirty = self.sent, self.now, self._pending()
        for cell in self._cells:
            self._pass(cell, cell.dirty(self._writers_now))
        self.rounds += 1
        self._round_ended(round(dirty * _core.BLOCK_SIZE), self.sent - sent, self.now - now)

    def _pass(self, cell: Cell, blocks: float) -> None:
        """Send `blocks` of a cell, one after the other; the marks of each are taken before its time to be sent."""
        mean = max(0.0, blocks - 1 / self._pieces) / 2 / self._speed
        cell.passed_at = self._writers_now + mean * self._throttle.fraction
        self._let_pass(blocks / self._speed)
        self.sent += blocks

    def _let_pass(self, seconds: float) -> None:
        self.now += seconds
        self._writers_now += seconds * self._throttle.fraction

    def _round_ended(self, dirty_bytes: int, sent: float, seconds: float) -> None:
        """Have a round, or the bulk phase, judged by those who judge it in a migration."""
        self._descent.round_ended(round(sent * self._pieces))
        left, nbytes = round(self._pending() * _core.BLOCK_SIZE), round(sent * _core.BLOCK_SIZE)
        redirtied = max(0, left + (nbytes if self._rounds else dirty_bytes) - dirty_bytes)
        ended = stats.RoundStatistics(self.rounds, dirty_bytes, nbytes, seconds, redirtied)
        if self._parameters.auto_converge:
            before = self._rounds[-1] if self._rounds else None
            self._throttle.round_ended(ended, before, left, disk_bytes=self._disk_bytes)
        self._rounds.append(ended)
