# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a migration gets anywhere: bandwidth, dirty rate, and when to give up or to slow the writers down."""

from __future__ import annotations

import contextlib
import logging

from .. import _core, disk, errors, params, stats, units

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 0.1
"""Bandwidth is measured over windows of at least this length: QEMU's BUFFER_DELAY."""

MAX_ROUNDS_KEPT = 1000

WORTH = 0.75
"""One more round is worth its time if it leaves at most this share of what the one before it left."""

FRESH_SECONDS = 0.01
"""So long what was fetched from a remote tracker is good for a decision about the pause."""

THROTTLE_INITIAL = 0.20
THROTTLE_STEP = 0.10
THROTTLE_MAX = 0.99
"""QEMU's cpu-throttle figures: the writers' speed is cut by a fifth, then by a tenth more at a time."""


class BandwidthMeter:
    """The bytes per second that the link carried in the last window that tells something."""

    def __init__(self) -> None:
        self.bandwidth = 0.0
        self._seconds = 0.0
        self._nbytes = 0

    def add(self, nbytes: int, seconds: float) -> None:
        """Account for `nbytes` that took `seconds`; a window that moved less than a block tells nothing."""
        self._nbytes += nbytes
        self._seconds += seconds
        if self._seconds < WINDOW_SECONDS:
            return
        if self._nbytes >= _core.BLOCK_SIZE:
            self.bandwidth = self._nbytes / self._seconds
        self._nbytes, self._seconds = 0, 0.0

    def estimate(self) -> float:
        """Return the bandwidth, or before the first window is over what there is of it."""
        return self.bandwidth or (self._nbytes / self._seconds if self._seconds else 0.0)


class Rounds:
    """Keeps the statistics of the rounds; the round that is under way is the last."""

    def __init__(self, statistics: stats.OutgoingStatistics) -> None:
        self._statistics = statistics
        self._start = (0.0, 0, 0)

    def begin(self, number: int, dirty_bytes: int, *, now: float, transferred: int, blocks: int) -> None:
        """Open a round that has `dirty_bytes` to send."""
        self._start = (now, transferred, blocks)
        self._statistics.rounds.append(stats.RoundStatistics(number, dirty_bytes))
        del self._statistics.rounds[1 : len(self._statistics.rounds) - MAX_ROUNDS_KEPT]

    def end(self, dirty_bytes: int, *, now: float, transferred: int, blocks: int) -> stats.RoundStatistics:
        """Close the round that is under way, which left `dirty_bytes` dirty."""
        current = self._statistics.rounds[-1]
        since, transferred_before, blocks_before = self._start
        current.seconds = now - since
        current.transferred = transferred - transferred_before
        sent = (blocks - blocks_before) * _core.BLOCK_SIZE if current.number else current.dirty_bytes
        current.redirtied_bytes = max(0, dirty_bytes + sent - current.dirty_bytes)
        self._statistics.dirty_rate = current.dirty_rate
        return current


class Descent:
    """Whether it is time for the pause, once what is pending fits the downtime limit.

    The limit is a bound, not a target. While each round leaves clearly less than the one before, because it was
    shorter, one more costs little and makes the pause shorter; when it does not, the pause is as short as it gets.
    What would have to be left to go on shrinks by a quarter each time, so the rounds come to an end.
    """

    def __init__(self) -> None:
        self._least: int | None = None

    def has_ended(self, pending: int) -> bool:
        """Judge `pending` bytes, which fit the limit; call it again after one more round."""
        if pending and (self._least is None or pending <= self._least * WORTH):
            self._least = pending
            return False
        return True


class AutoConverge:
    """Slows the writers down while they are faster than half the link; `release` lets them run again."""

    def __init__(self, disks: list[disk.BlockBackend]) -> None:
        self._disks = disks
        self._strikes = 0
        self._throttle = 0.0

    def round_ended(self, ended: stats.RoundStatistics) -> None:
        """Judge a round: two bad ones in a row make the writers slower."""
        if not ended.number or ended.redirtied_bytes <= ended.transferred // 2:
            self._strikes = 0
            return
        self._strikes += 1
        if self._strikes < 2:
            return
        self._strikes = 0
        self._throttle = min(self._throttle + THROTTLE_STEP, THROTTLE_MAX) if self._throttle else THROTTLE_INITIAL
        slowed = [backend.name for backend in self._disks if backend.throttle_writers(1 - self._throttle)]
        logger.warning(
            "the writers dirty %s, more than half of what the link carries: %s",
            units.format_rate(ended.dirty_rate),
            f"slowed by {self._throttle:.0%}: {', '.join(slowed)}"
            if slowed
            else "none of the disks can slow them down",
        )

    def release(self) -> None:
        """Give the writers their speed back."""
        if self._throttle:
            self._throttle = 0.0
            with contextlib.ExitStack() as stack:  # all of them, whatever one of them says
                for backend in self._disks:
                    stack.callback(backend.throttle_writers, 1.0)


def has_time(parameters: params.MigrationParameters, *, elapsed: float, rounds: int) -> bool:
    """Return whether the caller's limits allow one more round of what fits the downtime limit."""
    if parameters.timeout is not None and elapsed + parameters.downtime_limit >= parameters.timeout:
        return False
    return parameters.max_rounds is None or rounds < parameters.max_rounds


def check_limits(
    parameters: params.MigrationParameters,
    statistics: stats.OutgoingStatistics,
    *,
    elapsed: float,
    pending: int,
    rounds: int,
) -> None:
    """Raise :class:`~blkmig.errors.NotConverged` if the migration has had all the time or rounds it was given."""
    if parameters.timeout is not None and elapsed >= parameters.timeout:
        limit = f"within {units.format_duration(parameters.timeout)}"
    elif parameters.max_rounds is not None and rounds > parameters.max_rounds:
        limit = f"in {parameters.max_rounds} rounds"
    else:
        return
    bandwidth, dirty_rate = statistics.bandwidth, statistics.dirty_rate
    raise errors.NotConverged(
        f"did not converge {limit}: {units.format_size(pending)} are still to be sent, the link carries "
        f"{units.format_rate(bandwidth)}, the writers dirty {units.format_rate(dirty_rate)}; allow a longer downtime "
        f"(now {units.format_duration(parameters.downtime_limit)}), more bandwidth, or slower writers",
        dirty_rate=dirty_rate,
        bandwidth=bandwidth,
        pending=pending,
        rounds=rounds,
    )
