# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of an outgoing migration: what it measures, the statistics that it keeps, what it tells its caller.

::

    counters of the handlers, position of the channel ──► section ──► bandwidth ─┐
                                                      └─► round ───► dirty rate ─┴─► statistics ──► events

They are read from what the migration counts anyway, between sections and never within one. Nothing here sends, waits or
decides. Everything belongs to the migration thread. `stats` may be read by any thread. It is written here; only the
times of setup and pause, the pauses that were given up and the notes are written by the modules that know them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

from .. import _core, block, savevm, stats
from . import connection, outlook, sentdisks

OnProgress = Callable[["stats.Event"], None]
PROGRESS_SECONDS = 0.1

WINDOW_SECONDS = 0.1
"""Bandwidth is measured over windows of at least this length: QEMU's BUFFER_DELAY."""


class BandwidthMeter:
    """The bytes per second that the link carried in the last window that tells something."""

    def __init__(self) -> None:
        self.bandwidth = 0.0
        self._seconds = 0.0
        self._nbytes = 0
        self._least = 0

    def add(self, nbytes: int, seconds: float, *, least: int) -> None:
        """Account for `nbytes` that took `seconds`; a window that moved less than `least` tells nothing."""
        if least != self._least:
            self.bandwidth = self.estimate()  # all that is known of a bulk phase that was shorter than a window
            self._least, self._nbytes, self._seconds = least, 0, 0.0
        self._nbytes += nbytes
        self._seconds += seconds
        if self._seconds < WINDOW_SECONDS:
            return
        if self._nbytes >= least:
            self.bandwidth = self._nbytes / self._seconds
        self._nbytes, self._seconds = 0, 0.0

    def estimate(self) -> float:
        """Return the bandwidth; before the first window is over, that of the window so far."""
        return self.bandwidth or (self._nbytes / self._seconds if self._seconds else 0.0)


class Figures:
    """The statistics of one migration, and the events of its `on_progress`."""

    def __init__(
        self,
        handlers: block.BlockSaveHandlers,
        save_state: savevm.SaveState,
        link: connection.Connection,
        *,
        on_progress: OnProgress | None,
        clock: Callable[[], float],
    ) -> None:
        # Set here, then read-only.
        self.stats = stats.OutgoingStatistics()
        self.meter = BandwidthMeter()
        self._block = handlers
        self._savevm = save_state
        self._connection = link
        self._on_progress = on_progress
        self._clock = clock
        self._outlook = outlook.Outlook(handlers, clock)
        self._phase: stats.Phase = "setup"
        self._has_told_waiting = False
        self._is_postponing = False
        self._postponed: Exception | None = None
        # Where the migration, its section and its round began, and when the caller was told last.
        self._started = 0.0
        self._section_start = (0.0, 0, 0, 0, False)
        self._round_start = (0.0, 0, 0, 0, 0)
        self._fetched_at: float | None = None
        self._last_report = 0.0
        self._disks_due = 0.0

    def pending(self) -> int:
        """Return the bytes that the last pass would have to send if it began now."""
        return self._savevm.state_pending()

    # -- time --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to count the seconds."""
        self._started = self._clock()

    def elapsed(self) -> float:
        """Return the seconds since the migration began."""
        return self._clock() - self._started

    def seconds_since_fetch(self) -> float:
        """Return how long ago the round began, while nothing of it is sent; infinite where that is not known."""
        return math.inf if self._fetched_at is None else self._clock() - self._fetched_at

    def is_round_fresh(self) -> bool:
        """Return whether nothing of the present round was sent yet."""
        return self._fetched_at is not None

    def forget_fetch(self) -> None:
        """Forget how long ago the round began."""
        self._fetched_at = None

    # -- sections ----------------------------------------------------------------------------------------------------

    def section_begins(self) -> None:
        """Note where a section begins; waiting for the rate limit belongs to it."""
        blk_mig = self._block.blk_mig
        position = self._connection.transferred
        counts_blocks = blk_mig.bulk_completed and blk_mig.round_number > 0
        self._section_start = (self._clock(), position, blk_mig.sent_bytes, blk_mig.round_number, counts_blocks)

    def section_ended(self) -> bool:
        """Account for the section; return whether it was the last one of its round."""
        now, blk_mig = self._clock(), self._block.blk_mig
        since, transferred, sent_bytes, round_number, counts_blocks = self._section_start
        has_round_ended = blk_mig.round_number != round_number
        self._fetched_at = now if has_round_ended else None
        # In the bulk phase holes are as many blocks as one likes, so only wire bytes count there, from a block on. What
        # is dirty is sent at once, and may be pieces that take long to read: all of it counts.
        wire_bytes = self._connection.transferred - transferred
        nbytes = blk_mig.sent_bytes - sent_bytes if counts_blocks else wire_bytes
        seconds = now - since - (blk_mig.fetch_seconds if has_round_ended else 0.0)
        self.meter.add(nbytes, seconds, least=1 if counts_blocks else _core.BLOCK_SIZE)
        self.update()
        return has_round_ended

    def update(self) -> None:
        """Copy the counters to where others read them."""
        blk_mig = self._block.blk_mig
        self.stats.transferred = self._connection.transferred
        self.stats.blocks = blk_mig.transferred
        self.stats.zero_blocks = blk_mig.zero_transferred
        self.stats.packs, self.stats.pack_bytes = blk_mig.packs, blk_mig.pack_bytes
        self.stats.saved_by_zeros = sum(bmds.savings.by_zeros for bmds in blk_mig.bmds_list)
        self.stats.saved_by_granularity = sum(bmds.savings.by_granularity for bmds in blk_mig.bmds_list)
        self.stats.saved_by_compression = sum(bmds.savings.by_compression for bmds in blk_mig.bmds_list)
        self.stats.same_bytes = blk_mig.same_bytes
        self.stats.bandwidth = self.meter.estimate()
        self.stats.total_time = self.elapsed()
        if self.stats.bandwidth and blk_mig.bulk_completed:  # before that, nobody knows what bulk will have left
            self.stats.expected_downtime = self.pending() / self.stats.bandwidth
        if self._phase == "waiting" and not self._has_told_waiting:
            self._has_told_waiting = True
            self.report(at_once=True)

    def count_disks(self) -> None:
        """Copy what was counted of each disk, before the disks are let go."""
        blk_mig = self._block.state_if_set_up()
        if blk_mig is not None:
            sentdisks.update(self.stats, blk_mig)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def begin_round(self, dirty_bytes: int) -> None:
        """Open a round that has `dirty_bytes` to send; the round that is under way is the last of the statistics."""
        rounds, blk_mig = self.stats.rounds, self._block.blk_mig
        position = self._connection.transferred
        self._round_start = (self._clock(), position, blk_mig.sent_bytes, blk_mig.transferred, blk_mig.packs)
        rounds.append(stats.RoundStatistics(rounds[-1].number + 1 if rounds else 0, dirty_bytes))
        del rounds[1 : len(rounds) - stats.MAX_ROUNDS_KEPT]
        if self.stats.status == "device":
            self._phase = "switchover"

    def close_round(self) -> stats.RoundStatistics:
        """Close the round that is under way, with what the writers have dirtied meanwhile."""
        blk_mig, current = self._block.blk_mig, self.stats.rounds[-1]
        left = blk_mig.dirty_bytes() + blk_mig.in_flight_bytes
        since, transferred, sent_bytes, blocks, packs = self._round_start
        current.seconds = self._clock() - since
        current.transferred = self._connection.transferred - transferred
        current.blocks = blk_mig.transferred - blocks
        current.packs = blk_mig.packs - packs
        sent = blk_mig.sent_bytes - sent_bytes if current.number else current.dirty_bytes
        current.redirtied_bytes = max(0, left + sent - current.dirty_bytes)
        self.stats.dirty_rate = current.dirty_rate
        if self._phase == "switchover":
            self._phase = "waiting"  # told by the next update, when the end of the stream is on its way
        return current

    def link_is_back(self, nbytes: int) -> None:
        """Take note of a link that was lost: so many bytes are to be sent again, on top of what this round had."""
        self.stats.reconnects += 1
        self.stats.taken_back_bytes += nbytes
        self.stats.rounds[-1].dirty_bytes += nbytes
        self.forget_fetch()

    # -- events ------------------------------------------------------------------------------------------------------

    def enter(self, status: stats.Status) -> None:
        """Enter a state of the migration and tell the caller."""
        self.stats.status = status
        if status == "active":  # bulk or dirty, as the handlers say
            self._phase, self._has_told_waiting = "bulk", False
            self._outlook.begin_bulk()
        self.notify(lambda: stats.StatusChanged(self.elapsed(), status))

    def complete(self) -> None:
        """Tell the caller that all disks are complete at the target, which has said so."""
        self.notify(lambda: stats.DisksComplete(self.elapsed()))

    def finish(self, status: stats.Status) -> None:
        """Enter the last state."""
        self.stats.total_time = self.elapsed()
        if status == "completed":
            sentdisks.all_is_sent(self.stats)
        self.enter(status)

    def report(self, *, at_once: bool = False) -> None:
        """Tell the caller how far it is: at once, or at most ten times a second."""
        now = self._clock()
        if self._on_progress is None or (now - self._last_report < PROGRESS_SECONDS and not at_once):
            return
        self._last_report = now
        self.notify(self._progressed)

    def _progressed(self) -> stats.Progressed:
        """Return a report of how far the migration is."""
        blk_mig, look = self._block.blk_mig, self._outlook
        look.look()
        if self._clock() >= self._disks_due:
            sentdisks.update(self.stats, blk_mig, look.disks_dirty_bytes)
            self._disks_due = self._clock() + sentdisks.SECONDS_PER_DISK * len(blk_mig.bmds_list)
        phase = "dirty" if self._phase == "bulk" and blk_mig.bulk_completed else self._phase
        dirty_rate = look.dirty_rate_in_bulk() if phase == "bulk" else self.stats.dirty_rate
        is_over = phase == "waiting"
        return stats.Progressed(
            elapsed=self.elapsed(),
            phase=phase,
            percent=look.bulk_percent if phase == "bulk" else self._round_percent(),
            transferred=self.stats.transferred,
            remaining=0 if is_over else look.left,
            total=blk_mig.bytes_total(),
            bandwidth=self.stats.bandwidth,
            dirty_rate=dirty_rate,
            expected_downtime=self.stats.expected_downtime,
            round_number=blk_mig.round_number,
            disk_rate=look.disk_rate if phase == "bulk" else 0.0,
            same_bytes=self.stats.same_bytes,
            saved_by_compression=self.stats.saved_by_compression,
            time_left=None if is_over else look.time_left(bandwidth=self.stats.bandwidth, dirty_rate=dirty_rate),
        )

    def _round_percent(self) -> float:
        """Return how much of what was dirty when the round began is sent; what was dirtied later may come on top."""
        if self._phase == "waiting":
            return 100.0
        sent = self._block.blk_mig.sent_bytes - self._round_start[2]
        dirty_bytes = self.stats.rounds[-1].dirty_bytes
        total = dirty_bytes if dirty_bytes > sent else sent + self._outlook.left
        return 100.0 * sent / total if total else 100.0

    def notify(self, event: Callable[[], stats.Event]) -> None:
        """Call the caller's callback, if there is one, with what `event` makes."""
        if self._on_progress is None:
            return
        told = event()
        try:
            self._on_progress(told)
        except Exception as error:
            if not self._is_postponing:
                raise
            self._postponed = self._postponed or error

    @contextlib.contextmanager
    def postponing(self) -> Iterator[None]:
        """Keep what the callback raises in the body of a ``with``, where it must not decide over disks and writers."""
        self._is_postponing = True
        try:
            yield
        finally:
            self._is_postponing = False

    def raise_postponed(self) -> None:
        """Raise what was kept, once."""
        error, self._postponed = self._postponed, None
        if error is not None:
            raise error
