# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a migration gets anywhere: when it is time for the pause, to give up, or to slow the writers down.

::

    pending > threshold_size  ─►  one more round; NotConverged, if the caller's limits are reached
    pending fits              ─►  one more round while that makes the pause clearly shorter, then the pause

`figures` says what is pending and what the bandwidth is; `outgoing` makes the rounds and the pause. This module only
decides, and changes nothing but the writers' speed. All of it belongs to the migration thread, but for `switchover` and
`wake`: any thread and any signal handler may call them, so they take no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import _core, block, disk, errors, params, stats, units
from . import attempts, figures, standby, written

if TYPE_CHECKING:
    from . import autoconverge

WORTH = 0.75
"""One more round is worth its time if the last one sent at most this share of what the one before it sent, and left at
most this share of what that left."""

SHRINKS = 0.9
STANDSTILL_ROUNDS = 3
"""A round shrinks if it leaves less than `SHRINKS` of the least so far. After so many that do not, that is told."""

FRESH_SECONDS = 0.01
"""What was fetched from a remote tracker is good enough for a decision about the pause for so many seconds."""


class Convergence:
    """When the last pass begins: by the figures, by what the caller's parameters allow, or because somebody says so."""

    def __init__(
        self,
        parameters: params.MigrationParameters,
        handlers: block.BlockSaveHandlers,
        measured: figures.Figures,
        look: Callable[[], None],
    ) -> None:
        # Set here, then read-only.
        self._parameters = parameters
        self._block = handlers
        self._figures = measured
        # Migration thread only.
        self._descent = Descent()
        self._fitting_round: int | None = None
        """The round in which what was pending began to fit the limit; None once a round has ended with it fitting."""

        self._sent_before_round = 0
        self._attempts = attempts.Attempts()
        self._was_link_lost = False
        self._standstill = Standstill()
        self._written = written.WrittenRate(measured.elapsed)
        self._standby = standby.StandBy(parameters, handlers, measured, look)
        self._auto_converge: autoconverge.AutoConverge | None = None
        if parameters.auto_converge:
            from . import autoconverge

            self._auto_converge = autoconverge.AutoConverge(handlers)
        # Any thread may set these, nobody clears them.
        self.switchover_requested = False

    def switchover(self) -> None:
        """Have it be time for the last pass, whatever is pending."""
        self.switchover_requested = True
        self.wake()

    def wake(self) -> None:
        """End a wait in `is_ready`."""
        self._standby.wake()

    def is_ready(self) -> bool:
        """Return whether it is time for the last pass; wait if somebody else decides that, and no round is due.

        Raises :class:`~blkmig.errors.NotConverged` if the caller's limits are reached before that.
        """
        pending = self._figures.pending()
        if not self._written.has_begun:
            self._written.look(self._block.sent_disks())
        if self.switchover_requested:
            return True
        if pending > self.threshold_size():
            self._check_limits(pending)
            return False
        if self._parameters.switchover == "auto":
            return self._is_time_for_the_pause()
        self._standby.wait(self.threshold_size())
        return self.switchover_requested

    def threshold_size(self) -> int:
        """Return the bytes that the last pass may have: what the link carries within the downtime limit.

        The time that it takes to learn what is dirty counts, too, but not for more than half of the limit: a limit that
        cannot be kept must not keep the migration from its end. 0 in the bulk phase: sending it with the writers held
        would only make the pause longer.
        """
        blk_mig, limit = self._block.blk_mig, self._parameters.downtime_limit
        if not blk_mig.bulk_completed:
            return 0
        return int(self._figures.meter.bandwidth * max(limit - blk_mig.fetch_seconds, limit / 2))

    def _is_time_for_the_pause(self) -> bool:
        """Return whether what is pending now fits the downtime limit, and one more round would not make it less.

        One that takes less time than to learn what is dirty cannot: the next one has as much. A round that is under way
        is brought to its end first: if the writers are slower than the link, that leaves less. If they were faster, and
        the round left too much, the pause begins the next time that what is pending fits.
        """
        if self._figures.seconds_since_fetch() > FRESH_SECONDS:
            # Towards its end, a round knows only what was dirty when it began.
            disk.sync_disks(self._block.sent_disks())
        pending, rounds = self._figures.pending(), self._block.blk_mig.round_number
        if pending > self.threshold_size():
            return False
        if not has_time(self._parameters, elapsed=self._figures.elapsed(), rounds=rounds):
            return True
        if self._figures.is_round_fresh():
            self._fitting_round = None
            is_quick = pending <= self._figures.meter.bandwidth * self._block.blk_mig.fetch_seconds
            return is_quick or self._descent.has_ended(pending)
        if self._fitting_round not in (None, rounds):
            return True
        self._fitting_round = rounds
        return False

    def pause_given_up(self, downtime: float) -> None:
        """Take note of a pause that took too long."""
        self._attempts.given_up()
        self._begin_anew(downtime)

    def pause_lost(self, downtime: float) -> None:
        """Take note of a pause in which the link was lost, and came back."""
        self._attempts.lost()
        self._was_link_lost = True
        self._begin_anew(downtime)

    def _begin_anew(self, downtime: float) -> None:
        """Forget what was known about the rounds before a pause that did not end the migration: it is worth nothing."""
        self._figures.stats.pauses_given_up += 1
        self._figures.stats.downtime_given_up += downtime
        self._descent = Descent()

    def check_pauses(self) -> None:
        """Raise :class:`~blkmig.errors.NotConverged` unless one more pause may be tried after one that was given up.

        Whoever has asked for the switchover is told at once.
        """
        count = self._attempts.count
        is_lost, self._was_link_lost = self._was_link_lost, False
        if self._attempts.are_too_many or (self._parameters.switchover == "manual" and not is_lost):
            raise self.not_converged("in the pause" if count == 1 else f"in {count} pauses")
        self._check_limits(self._figures.pending())

    def _check_limits(self, pending: int) -> None:
        """Raise :class:`~blkmig.errors.NotConverged` if the migration has had all the time or rounds it was given."""
        timeout, max_rounds = self._parameters.timeout, self._parameters.max_rounds
        if timeout is not None and self._figures.elapsed() >= timeout:
            raise self.not_converged(f"within {units.format_duration(timeout)}")
        if max_rounds is not None and self._block.blk_mig.round_number > max_rounds:
            raise self.not_converged(f"in {max_rounds} rounds")

    def not_converged(self, limit: str) -> errors.NotConverged:
        """Return the error for a migration that did not converge, say, ``within 4 s``."""
        blk_mig, pending = self._block.state_if_set_up(), 0
        if blk_mig is not None:
            pending = self._figures.pending()
        bandwidth, dirty_rate = self._figures.stats.bandwidth, self._figures.stats.dirty_rate
        pauses = self._attempts.describe(self._parameters.downtime_bound)
        link = f"the link carries {units.format_rate(bandwidth)}"
        limit_now = units.format_duration(self._parameters.downtime_limit)
        if blk_mig is None or not blk_mig.bulk_completed:
            # Where nothing but zeros was read, nobody knows what the link carries, and it is not to blame.
            why = f"the disks were not read once in that time, {units.format_size(pending)} of them are left"
            what_to_do = f"{link}; allow more time, or more bandwidth" if bandwidth else "allow more time"
        elif blk_mig.is_fixed:
            why, what_to_do = "everything was sent", "the target does not say that it has it: look whether it hangs"
        else:
            why = f"{units.format_size(pending)} are still to be sent, {link}, the writers "
            why += f"{self._describe_writers()}{pauses}"
            what_to_do = f"allow a longer downtime (now {limit_now}), more bandwidth, or slower writers"
        return errors.NotConverged(
            f"did not converge {limit}: {why}; {what_to_do}",
            dirty_rate=dirty_rate,
            bandwidth=bandwidth,
            pending=pending,
            rounds=0 if blk_mig is None else blk_mig.round_number,
            written_rate=self._written.per_second,
        )

    def _describe_writers(self) -> str:
        """Say what the writers write, if that is known, and what they dirty."""
        dirty, own = units.format_rate(self._figures.stats.dirty_rate), self._written.per_second
        if own is None:
            return f"dirty {dirty}"
        return f"write {units.format_rate(own)}, which dirties {dirty} {units.describe_pieces(self._granule())}"

    def _granule(self) -> int:
        blk_mig = self._block.state_if_set_up()
        return _core.BLOCK_SIZE if blk_mig is None else blk_mig.granule()

    def round_ended(self, ended: stats.RoundStatistics) -> bool:
        """Slow the writers down after a round that left too much, if the caller wants that; tell if nothing helps.

        Returns whether the round is worth telling the caller.
        """
        rounds, blk_mig = self._figures.stats.rounds, self._block.blk_mig
        # Holes are zero blocks, as many as one likes.
        sent = blk_mig.sent_bytes - blk_mig.zero_transferred * _core.BLOCK_SIZE
        self._descent.round_ended(sent - self._sent_before_round)
        self._sent_before_round = sent
        self._written.look(self._block.sent_disks())
        if self._auto_converge is not None:
            before = rounds[-2] if len(rounds) > 1 else None
            self._auto_converge.round_ended(ended, before, self._figures.pending())
        pending, threshold = self._figures.pending(), self.threshold_size()
        if self._parameters.switchover == "auto" and self._standstill.is_worth_telling(pending, threshold):
            self._figures.notify(
                lambda: stats.NotConverging(
                    elapsed=self._figures.elapsed(),
                    dirty_rate=ended.dirty_rate,
                    bandwidth=self._figures.stats.bandwidth,
                    pending=pending,
                    threshold_size=threshold,
                    round_number=ended.number,
                    written_rate=self._written.per_second,
                    granule=blk_mig.granule(),
                )
            )
        return self._standby.is_worth_telling()

    def release_throttle(self) -> None:
        """Give the writers their speed back, if it was taken."""
        if self._auto_converge is not None:
            self._auto_converge.release()


class Descent:
    """Whether it is time for the pause, once what is pending fits the downtime limit.

    The limit is a bound, not a target. While each round is clearly shorter than the one before, and therefore leaves
    clearly less, one more costs little and makes the pause shorter; when it does not, the pause is as short as it gets.
    A round that leaves less and is no shorter tells where the writers are just now, and not that they are left behind:
    so it is with somebody who writes one block after the other, nearly as fast as the rounds go.
    What a round would have to send and to leave shrinks by a quarter each time, so the rounds come to an end.
    """

    def __init__(self) -> None:
        self._least: int | None = None
        self._sent: int | None = None
        self._is_shorter = True

    def round_ended(self, sent: int) -> None:
        """Take note of a round, or of the bulk phase, that has sent so much that is not zero blocks."""
        self._is_shorter = self._sent is None or sent <= self._sent * WORTH
        self._sent = sent

    def has_ended(self, pending: int) -> bool:
        """Judge `pending` bytes, which fit the limit; call it again after one more round."""
        if pending and self._is_shorter and (self._least is None or pending <= self._least * WORTH):
            self._least = pending
            return False
        return True


class Standstill:
    """Whether the rounds have stopped shrinking, above the downtime limit: each leaves at least `SHRINKS` of the least
    so far."""

    def __init__(self) -> None:
        self._least: int | None = None
        self._rounds = 0
        self._tell_at = STANDSTILL_ROUNDS

    def is_worth_telling(self, pending: int, threshold_size: int) -> bool:
        """Judge the `pending` bytes that a round has left: the third round that does not shrink is worth a word."""
        if pending <= threshold_size or self._least is None or pending < self._least * SHRINKS:
            self._least, self._rounds, self._tell_at = pending, 0, STANDSTILL_ROUNDS
            return False
        self._rounds += 1
        if self._rounds < self._tell_at:
            return False
        self._tell_at *= 2
        return True


def has_time(parameters: params.MigrationParameters, *, elapsed: float, rounds: int) -> bool:
    """Return whether the caller's limits allow one more round of what fits the downtime limit."""
    if parameters.timeout is not None and elapsed + parameters.downtime_limit >= parameters.timeout:
        return False
    return parameters.max_rounds is None or rounds < parameters.max_rounds
