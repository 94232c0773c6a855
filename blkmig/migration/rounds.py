# SPDX-License-Identifier: GPL-2.0-or-later
"""The rounds of an outgoing migration: sections of about 100 ms, until it is time for the pause.

::

    until_ready ─ flush ahead ─ fetch_anew ─ until_ready ─ send_this_one ─► the pause ─ given up ─► finish_this_one ─┐
        ▲                                                                                                            │
        └────────────────────────────────────────────────────────────────────────────────────────────────────────────┘

`convergence` decides when it is time; here sections are sent and rounds are counted. Migration thread only.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import block, errors, savevm, stats
from . import bounds, connection, convergence, figures, life, outgoingsession, questions


class Rounds:
    """Sends the sections of one migration, of the bulk phase and of each round."""

    def __init__(
        self,
        handlers: block.BlockSaveHandlers,
        save_state: savevm.SaveState,
        link: connection.Connection,
        asked: questions.Questions,
        measured: figures.Figures,
        judge: convergence.Convergence,
        limits: bounds.Bounds,
        states: life.Life,
        session: outgoingsession.OutgoingSession,
    ) -> None:
        # Set here, then read-only.
        self._block = handlers
        self._savevm = save_state
        self._connection = link
        self._questions = asked
        self._figures = measured
        self._convergence = judge
        self._bounds = limits
        self._life = states
        self._session = session
        self.before_more: Callable[[], None] = lambda: None
        """Called where it is not time for the pause after all, or not yet, before the next section."""

    def until_ready(self) -> None:
        """Send sections until it is time for the pause. Raises what `Convergence.is_ready` raises. Blocks."""
        if self._is_ready():
            return
        self.before_more()
        self.iterate()
        while not self._is_ready():
            self.iterate()

    def _is_ready(self) -> bool:
        with self._bounds.saying_why():
            self._connection.check_cancelled()
            try:
                return self._convergence.is_ready()
            except errors.ChannelError as error:
                self._session.go_on(error)
                return False

    def iterate(self) -> None:
        """Send one section, and close the round that ends with it. Blocks for channel, disks and rate limit."""
        self._life.require("active")
        with self._bounds.saying_why():
            try:
                has_round_ended = self.send_section()
            except errors.ChannelError as error:
                self._session.go_on(error)
                has_round_ended = False
            if has_round_ended:
                self._round_ended()
        self._figures.report()

    def send_section(self) -> bool:
        """Send one section; return whether a round has ended with it."""
        self._figures.section_begins()
        f = self._connection.f
        f.wait_rate_limit()
        with self._connection.explaining_errors():
            self._savevm.state_iterate(f)
        self._questions.look()
        if self._block.base.has_ended():
            self._questions.await_base_checked(self._savevm)
            self._session.base_is_checked()
        self._session.section_ended()
        return self._figures.section_ended()

    def _round_ended(self) -> None:
        """Close the round in the statistics, tell the caller, and begin the next one."""
        ended = self._figures.close_round()
        if not ended.number:  # in the bulk phase a long queue does no harm, and keeps a quick link busy
            self._connection.f.limit_queue()
        is_worth_telling = self._convergence.round_ended(ended)
        if is_worth_telling:
            pending, threshold = self._figures.pending(), self._convergence.threshold_size()
            self._figures.notify(lambda: stats.RoundEnded(self._figures.elapsed(), ended, pending, threshold))
        self._figures.begin_round(self._block.blk_mig.round_dirty_bytes)

    def fetch_anew(self) -> None:
        """Send what this round has, and begin the next one, after something has taken its time. Blocks.

        This round was fetched before that. What was written since would all be left to the pause, also what
        `shorten_the_pause` could send.
        """
        if not self._convergence.switchover_requested:
            self.finish_this_one()

    def shorten_the_pause(self) -> None:
        """Send what this round has while the writers run, if little is left; the pause then sends the next one only.

        Else the pause would send this round, too, and what is dirtied while that is fetched. As rounds do not get
        shorter any more, the next one has as much as this one: at most half of the limit.
        """
        if self._convergence.switchover_requested:
            return
        if not 0 < self._figures.pending() <= self._convergence.threshold_size() // 2:
            return
        self._send_this_one()
        if self._figures.pending() > self._convergence.threshold_size():
            self.until_ready()

    def _send_this_one(self) -> None:
        """Send what this round has, and leave it to the pause to ask what the next one has."""
        self._block.blk_mig.is_last_round = True
        while not self._block.is_round_over():
            self.iterate()
        self._block.blk_mig.is_last_round = False

    def finish_this_one(self) -> None:
        """Send what is left of this round, also where a pause that was given up has sent a part; begin the next."""
        number = self._block.blk_mig.round_number
        while self._block.blk_mig.round_number == number:
            self.iterate()
