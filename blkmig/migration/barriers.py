# SPDX-License-Identifier: GPL-2.0-or-later
"""The barriers of an outgoing session: what is sent is acknowledged while the migration goes on.

::

    source    sections ─ BARRIER 1 ─ sections ─────────────── BARRIER 2 ─ ...
    target                             flush ─ ACK 1 ────────────┘        one is outstanding, never two

A barrier is due when enough was sent since the last one, or enough time has passed, and that one was acknowledged. In
the first second there is none, so a small disk has none. If the target falls behind, the source waits: what is not
acknowledged would have to be sent again. Migration thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import block, errors, savevm, stats, units
from . import connection, figures, questions

BARRIER_SECONDS = 1.0
BARRIER_BYTES = 256 * units.MiB
"""A barrier is due after so many seconds, or so many bytes on the wire."""

MOST_UNACKNOWLEDGED = 1 * units.GiB
"""Bytes on the wire that may be sent before a barrier that is outstanding is waited for."""


class Barriers:
    """The barriers of one migration, once `open` has been called."""

    def __init__(
        self,
        handlers: block.BlockSaveHandlers,
        save_state: savevm.SaveState,
        link: connection.Connection,
        asked: questions.Questions,
        measured: figures.Figures,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Set here, then read-only.
        self._block = handlers
        self._savevm = save_state
        self._connection = link
        self._questions = asked
        self._figures = measured
        self._clock = clock
        # Set by `open`.
        self._log: block.SentLog | None = None
        self._proofs: block.Proofs | None = None
        self._first_at = self._last_at = 0.0
        self._acknowledged_counts: block.Counts
        self._sent_counts: block.Counts
        # Numbers of barriers; and positions in the present connection, at which the last ones stand.
        self.sent = self.acknowledged = 0
        self._sent_position = self._acknowledged_position = 0

    def open(self) -> None:
        """Begin to keep what is sent, because the target takes barriers."""
        self._log = self._block.blk_mig.log = block.SentLog()
        self._proofs = self._block.blk_mig.proofs
        if self._proofs is not None:
            self._proofs.keep_log()
        self._acknowledged_counts = self._sent_counts = block.Counts.of(self._block.blk_mig)
        self._questions.on_ack = self._heard
        self._last_at = self._clock()
        self._first_at = self._last_at + BARRIER_SECONDS
        self._sent_position = self._acknowledged_position = self._connection.f.position

    def section_ended(self) -> None:
        """Send a barrier if one is due, and wait for its ACK if too much is not acknowledged. Blocks."""
        if self._log is None:
            return
        if self._is_due(self._log):
            self._send(self._log)
        if self._is_outstanding and self._is_too_much(self._log):
            self._questions.await_while(lambda: self._is_outstanding, "waiting for the target to store what was sent")

    @property
    def _is_outstanding(self) -> bool:
        return self.acknowledged < self.sent

    def _is_due(self, log: block.SentLog) -> bool:
        nbytes, now = self._connection.f.position - self._sent_position, self._clock()
        if self._is_outstanding or not nbytes:
            return False
        if log.is_full:
            return True
        return now >= self._first_at and (nbytes >= BARRIER_BYTES or now - self._last_at >= BARRIER_SECONDS)

    def _is_too_much(self, log: block.SentLog) -> bool:
        return log.is_full or self._connection.f.position - self._acknowledged_position > MOST_UNACKNOWLEDGED

    def _send(self, log: block.SentLog) -> None:
        self.sent += 1
        log.barrier()
        if self._proofs is not None:
            self._proofs.barrier()
        self._sent_counts = block.Counts.of(self._block.blk_mig)
        self._last_at, self._sent_position = self._clock(), self._connection.f.position
        with self._connection.explaining_errors():
            self._savevm.state_part(self._connection.f, "blkmig", block.barrier_records(self.sent))

    def _heard(self, number: int, position: int) -> None:
        """Take note of an ACK; one that came twice, because the link was lost between, says nothing new."""
        if number > self.sent:
            raise errors.StreamError("the target acknowledges what was not sent", position=position)
        if self._log is None or number <= self.acknowledged:
            return
        self.acknowledged = number
        self._log.acknowledged()
        if self._proofs is not None:
            self._proofs.acknowledged()
        self._acknowledged_counts, self._acknowledged_position = self._sent_counts, self._sent_position
        self._figures.stats.barriers = number
        self._figures.notify(lambda: stats.Acknowledged(self._figures.elapsed(), number))

    def ask_again(self, last_ack: int) -> None:
        """Go on behind COMMIT on another connection: nothing is sent again but what proves the disks."""
        if self.acknowledged < last_ack <= self.sent:
            self._heard(last_ack, 0)
        if self._proofs is not None:
            self._proofs.take_back()

    # -- after a loss --------------------------------------------------------------------------------------------------

    def go_on(self, last_ack: int) -> int:
        """Mark dirty what the target has not acknowledged, `last_ack` being its last one; return how many bytes.

        A new connection begins, with positions of its own, and with the number that follows `last_ack`. Raises
        :class:`~blkmig.errors.StreamError` if the target cannot have said that.
        """
        assert self._log is not None
        if not self.acknowledged <= last_ack <= self.sent:
            raise errors.StreamError("the target has acknowledged what was not sent, or less than before", position=0)
        if last_ack > self.acknowledged:
            self._heard(last_ack, 0)
        self.sent = last_ack
        self._acknowledged_counts.restore(self._block.blk_mig)
        if self._proofs is not None:
            self._proofs.take_back()
        self._sent_position = self._acknowledged_position = self._connection.f.position
        self._last_at = self._clock()
        return block.take_back_sent(self._block.blk_mig)
