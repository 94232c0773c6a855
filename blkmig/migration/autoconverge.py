# SPDX-License-Identifier: GPL-2.0-or-later
"""Slowing the writers down to what the link carries: the speed is computed from a round, not searched step by step.

A round dirties what the next one has to send, so rounds shrink by the writers' speed over the link's. A long round does
not show the writers' speed, for a write to a block that is dirty already dirties nothing. Say that the writers write
`speed` blocks a second at random places among `hot_blocks` blocks. The cursor of a round passes over these in
`seconds`, and the blocks that it has passed are written again::

    left(seconds) = hot_blocks * share(speed * seconds / hot_blocks)        share(z) = 1 - (1 - exp(-z)) / z

Two rounds of different length, the bulk phase being the first, give both unknowns. Where twice the time leaves twice
the blocks, nothing is hidden, and the speed is what the round shows. Where the rounds are of like length, all blocks
count as hot, which gives the lowest writers' speed that explains the rounds: nobody is slowed more than is needed, and
the rounds after that are shorter and tell more.
"""

from __future__ import annotations

import functools
import math

from .. import _core, block, errors, logs, stats, units
from . import written

logger = logs.Logger(__name__)

BAD_SHARE = 0.5
"""A round is bad if it dirties more than this part of what it sends: QEMU's figure."""

GOOD_SHARE = 0.4
"""The writers are slowed to this part of the link's speed: far enough below `BAD_SHARE` for a small mistake."""

MIN_FRACTION = 0.01
"""The part of their speed that the writers always keep: QEMU's throttle ends there, too."""

LENGTHS = 2.0
"""How many times as long the longer one of two rounds must be, for both together to tell anything."""

MIN_SECONDS = 0.1
"""A single round that is shorter than this tells nothing; two of them in a row do."""


class AutoConverge:
    """Slows the writers of one migration down while they are faster than half the link; `release` ends that."""

    def __init__(self, handlers: block.BlockSaveHandlers) -> None:
        # Set here, then read-only.
        self._block = handlers
        # Migration thread only.
        self._throttle = Throttle()
        self._written: int | None = None

    def round_ended(self, ended: stats.RoundStatistics, before: stats.RoundStatistics | None, left: int) -> None:
        """Judge a round, which followed on `before` and left `left` bytes dirty, and slow the writers if it was bad."""
        before_written, self._written = self._written, written.count_written(self._block.sent_disks())
        throttle = self._throttle
        if not throttle.round_ended(ended, before, left, disk_bytes=self._block.blk_mig.bytes_total()):
            return
        disks = self._block.sent_disks()
        slowed = [backend.name for backend in disks if backend.throttle_writers(throttle.fraction)]
        logger.warning(
            "the writers dirty %s %s%s, and the link carries %s: %s",
            units.format_rate(throttle.speed),
            units.describe_pieces(self._block.blk_mig.granule()),
            _own_rate(before_written, self._written, ended.seconds),
            units.format_rate(throttle.bandwidth),
            f"slowed to {throttle.fraction:.0%} of their speed: {', '.join(slowed)}"
            if slowed
            else "none of the disks can slow them down",
        )

    def release(self) -> None:
        """Give the writers their speed back."""
        if self._throttle.fraction < 1:
            self._throttle.fraction = 1.0
            errors.each(functools.partial(each.throttle_writers, 1.0) for each in self._block.sent_disks())


class Throttle:
    """To which fraction of their speed the writers are to be slowed, by the rounds; a forecast asks it, too."""

    def __init__(self) -> None:
        self.fraction = 1.0
        # Bytes per second, of the last bad round: how fast the writers write to blocks, and what the link carried.
        self.speed = 0.0
        self.bandwidth = 0.0
        self._strikes = 0
        self._fraction_before = 1.0
        self._hot_blocks = math.inf

    def round_ended(
        self, ended: stats.RoundStatistics, before: stats.RoundStatistics | None, left: int, *, disk_bytes: int
    ) -> bool:
        """Judge a round, which followed on `before` and left `left` bytes dirty; return whether it asks for a slowdown.
        """
        carried = max(ended.transferred, ended.dirty_bytes)  # zeros take no room on the wire
        if not ended.number or not ended.seconds or ended.redirtied_bytes <= carried * BAD_SHARE:
            self._strikes = 0
            self._fraction_before = self.fraction
            return False
        self._strikes += 1
        if ended.seconds < MIN_SECONDS and self._strikes < 2:
            return False
        self._strikes = 0
        self.speed = self._find_speed(ended, before, left, disk_bytes) * _core.BLOCK_SIZE
        self.bandwidth = carried / ended.seconds
        wanted = self.fraction * GOOD_SHARE * self.bandwidth / self.speed
        self.fraction = max(MIN_FRACTION, min(wanted, self.fraction))
        return True

    def _find_speed(
        self, ended: stats.RoundStatistics, before: stats.RoundStatistics | None, left: int, disk_bytes: int
    ) -> float:
        """Return how many blocks a second the writers write to, if each is counted again when it is written again."""
        shown = ended.redirtied_bytes / _core.BLOCK_SIZE / ended.seconds
        # A writer that is slowed down does in a second what it did before in a part of it.
        seconds = ended.seconds * self.fraction
        seconds_before = before.seconds * self._fraction_before if before else 0.0
        self._fraction_before = self.fraction
        if seconds_before >= LENGTHS * seconds:
            self._hot_blocks = hot_blocks(ended.dirty_bytes, seconds_before, left, seconds)
        hot = min(self._hot_blocks, disk_bytes / _core.BLOCK_SIZE)
        return max(shown, speed_of(hot, left / _core.BLOCK_SIZE, ended.seconds))


def _own_rate(before: int | None, after: int | None, seconds: float) -> str:
    return "" if before is None or after is None else f" by writing {units.format_rate((after - before) / seconds)}"


def share(z: float) -> float:
    """Return which part of the hot blocks a round leaves dirty in which each is written `z` times by mean."""
    return z / 2 - z * z / 6 if z < 1e-4 else 1 + math.expm1(-z) / z


def inverse_share(part: float) -> float:
    """Return the `z` whose `share` is `part`; infinite for all of it."""
    if part >= 1:
        return math.inf
    low, high = 0.0, 1 / (1 - max(part, 0.0))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < part else (low, middle)
    return high


MAX_PART = 0.9
"""Of the hot blocks that are dirty; what is closer to all of them tells nothing about how often they are written."""


def hot_blocks(left_before: float, seconds_before: float, left: float, seconds: float) -> float:
    """Return how many blocks the writers write to, from what two rounds left, in bytes; infinite if that is not seen.

    `left_before` of the first one, which took `seconds_before`, and `left` of the second one.
    """
    if not (left and left_before and seconds and seconds_before > seconds):
        return math.inf  # a shorter round has to be the second one
    found = left / left_before
    if found <= seconds / seconds_before * 1.05:
        return math.inf  # as much in the same time
    # The more often each block is written, the closer to one comes the ratio of what rounds of any length leave.
    low, high = 1e-6, 1e3
    for _ in range(100):
        rate = math.sqrt(low * high)
        ratio = share(rate * seconds) / share(rate * seconds_before)
        low, high = (rate, high) if ratio < found else (low, rate)
    return left / _core.BLOCK_SIZE / share(high * seconds)


def speed_of(hot: float, left: float, seconds: float) -> float:
    """Return the writes a second to `hot` blocks after which a round of `seconds` leaves `left` blocks."""
    if math.isinf(hot) or not seconds:
        return 0.0
    return inverse_share(min(left / hot, MAX_PART)) * hot / seconds
