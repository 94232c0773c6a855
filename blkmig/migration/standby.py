# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a switchover that somebody else asks for: ready at any moment, with as few rounds as that needs.

::

    a round begins ──┬── a quarter of what the pause may have is dirty ──► it is sent
                     ├── a second has passed, and anything is dirty ─────► it is sent
                     ├── nothing was sent for `KEEP_ALIVE_SECONDS` ──────► one block is sent again
                     └── switchover(), cancel(), the target or a disk has something to say ──► at once

Whoever asks for the switchover may be sending RAM over the same link, so rounds are few. A receiver that gets nothing
for its idle time-out gives up, so it gets a block from time to time: a real one, for chatter does not count.

Migration thread only; `wake` is called by whoever sets something that the wait looks at.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable

from .. import block, disk, params
from . import figures

SHARE = 4
"""A round is due when this part of what the pause may have is dirty: the rest is for what is dirtied meanwhile."""

ROUND_SECONDS = 1.0
"""However little is dirty, it is sent after so long, so that hardly anything is left when the switchover comes."""

MIN_SLICE, MAX_SLICE = 0.02, 0.25
"""Seconds between two looks at what is dirty; a look at a QEMU's disks takes it a few milliseconds."""

KEEP_ALIVE_SECONDS = 15.0
NOTICE_SECONDS = 10.0
"""Rounds that only keep a migration ready are reported this far apart: there is one each second, with no news."""

IDLE_SHARE = 4
"""The other end is taken to have our idle time-out, and gets something four times in that time."""


class StandBy:
    """The wait of one migration; `look` raises what the target, or a caller who cancels, has to say."""

    def __init__(
        self,
        parameters: params.MigrationParameters,
        handlers: block.BlockSaveHandlers,
        measured: figures.Figures,
        look: Callable[[], None],
    ) -> None:
        # Set here, then read-only.
        self._block = handlers
        self._figures = measured
        self._look = look
        idle = parameters.idle_timeout / IDLE_SHARE
        self._keep_alive = min(idle, KEEP_ALIVE_SECONDS) if idle else KEEP_ALIVE_SECONDS
        # When something was sent last, as far as was seen, and how much had been sent by then.
        self._sent_at = 0.0
        self._sent_bytes = -1
        # Whether the migration was waiting in the last round, and when a round was told last.
        self._has_waited = False
        self._told_at = 0.0
        # Any thread may put something there.
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wake(self) -> None:
        """End the wait. From any thread and any signal handler."""
        self._wakeups.put(None)

    def is_worth_telling(self) -> bool:
        """Return whether the caller should be told of the round that has ended."""
        now = self._figures.elapsed()
        if self._has_waited and now - self._told_at < NOTICE_SECONDS:
            return False
        self._has_waited, self._told_at = False, now
        return True

    def wait(self, threshold: int) -> None:
        """Wait until a round is due, or somebody calls `wake`; `threshold` bytes are what the pause may have.

        Returns at once in the middle of a round.
        """
        while self._figures.is_round_fresh():
            if self._is_round_due(threshold):
                return
            self._has_waited = True
            with contextlib.suppress(queue.Empty):
                self._wakeups.get(timeout=self._slice(threshold))
                return
            self._look()
            for backend in self._block.sent_disks():
                backend.check_source()
            disk.sync_disks(self._block.sent_disks())
            self._figures.update()
            self._figures.report()

    def _is_round_due(self, threshold: int) -> bool:
        pending, now = self._figures.pending(), self._figures.elapsed()
        if self._block.blk_mig.sent_bytes != self._sent_bytes:
            self._sent_bytes, self._sent_at = self._block.blk_mig.sent_bytes, now
        if pending:
            return pending * SHARE > threshold or self._figures.seconds_since_fetch() >= ROUND_SECONDS
        if now - self._sent_at < self._keep_alive:
            return False
        self._block.mark_one_block()
        return True

    def _slice(self, threshold: int) -> float:
        """Return the seconds in which, at the writers' present speed, a round cannot become due by far."""
        rate = self._figures.stats.dirty_rate
        seconds = threshold / SHARE / rate if rate else MAX_SLICE
        return max(MIN_SLICE, min(seconds, MAX_SLICE, self._keep_alive))
