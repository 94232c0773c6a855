# SPDX-License-Identifier: GPL-2.0-or-later
"""One attempt to complete an outgoing migration: hold the writers, end the stream, or give the pause up again.

Whether there is an attempt, and another one after it, is not decided here. Migration thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import block, errors, params
from . import bounds, connection, convergence, ending, figures, life, outgoingsession, pause, proving


class Completing:
    """The attempts of one migration."""

    def __init__(
        self,
        parameters: params.MigrationParameters,
        handlers: block.BlockSaveHandlers,
        link: connection.Connection,
        measured: figures.Figures,
        judge: convergence.Convergence,
        limits: bounds.Bounds,
        end: ending.Ending,
        proven: proving.Proving,
        states: life.Life,
        session: outgoingsession.OutgoingSession,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Set here, then read-only.
        self._parameters = parameters
        self._block = handlers
        self._connection = link
        self._figures = measured
        self._convergence = judge
        self._bounds = limits
        self._ending = end
        self._proving = proven
        self._life = states
        self._session = session
        self._clock = clock

    def attempt(self) -> bool:
        """Bring the migration to its end and return True, or False where the pause was given up: it goes on then."""
        self._life.require("active")
        with self._bounds.saying_why():
            self._wait_until_compared()
        self._figures.enter("device")
        self._convergence.release_throttle()
        held = self._make_pause()
        self._bounds.watch(held)
        try:
            with (
                self._ending.noting(held),
                pause.pausing(held),
                self._bounds.saying_why(),
                self._figures.postponing(),
            ):
                self._ending.send(held)
        except pause.GivenUp:
            self._go_back_to_rounds()
            self._figures.raise_postponed()
            return False
        except errors.ChannelError as error:
            if self._ending.has_begun:
                raise
            self._reconnect(held, error)
            self._figures.raise_postponed()
            return False
        with self._bounds.saying_why():
            self._proving.finish()
        try:
            self._connection.see_off_command()
            self._figures.report(at_once=True)
            self._figures.raise_postponed()  # not before: it is done, whatever the caller's function says
        finally:
            self._life.end(None)
        return True

    def _wait_until_compared(self) -> None:
        while True:
            try:
                return self._proving.until_compared()
            except errors.ChannelError as error:
                self._session.go_on(error)

    def _make_pause(self) -> pause.Pause:
        return pause.Pause(
            self._block.sent_disks(),
            self._bounds.watchdog,
            clock=self._clock,
            bound=self._parameters.downtime_bound,
            is_move=self._parameters.writers_after == "refuse",
            cut=self._bounds.reach_in_pause,
            reset=self._connection.abort,
            may_be_complete=self._ending.may_be_complete,
        )

    def _reconnect(self, held: pause.Pause, error: errors.ChannelError) -> None:
        """Go on after the link was lost in the pause: the writers run, and END was not sent. Blocks."""
        with self._bounds.saying_why():
            self._session.go_on(error)
        self._block.last_round.leave()
        if not held.is_given_up:
            self._convergence.pause_lost(held.downtime)
        self._bounds.count_given_up()

    def _go_back_to_rounds(self) -> None:
        """Go on after a pause that was given up."""
        self._block.last_round.leave()
        self._connection.f.set_rate_limit(int(self._parameters.max_bandwidth))
        self._connection.f.limit_queue()
        self._bounds.count_given_up()
        self._figures.enter("active")
