# SPDX-License-Identifier: GPL-2.0-or-later
"""The session of an outgoing migration: a link that is lost costs what was not acknowledged, and not the migration.

::

    START: SESSION ─ SESSION ─ sections, BARRIER, ACK ... the link is lost
                                                          │  reset it, take back what is in flight
                                                          │  connect: "blkS", the next attempt ─ SESSION: last ACK
                                                          └─ take back what was sent after that ─ sections ...
    COMMIT n ... the link is lost ─ "blkS" ─ SESSION ─ COMMIT n again ─ DONE n
    killed, and another process: "blkR", the next incarnation ─ RESUMED ─ a stream of its own, which compares

There is one only between two blkmigs, on a channel that can be opened again. A reset of the old link comes before
anything else: none of its bytes may reach the target once new ones have been read. What the target's process knows
stays there, so the connection that goes on needs no table and no question, and begins with a record.

A link that breaks again and again, each time before it has carried anything, is one loss: its time runs on. Whoever
fails for good says so on a connection of its own, for in the stream nobody knows where in a record it stands.

All of it belongs to the migration thread.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TypeVar

from .. import block, errors, logs, params, savevm, stats
from . import barriers, bundling, connection, figures, keyfile, questions, reasons, resuming

logger = logs.Logger(__name__)

T = TypeVar("T")

RECONNECT_SECONDS = 60.0
"""How long a lost link is tried to be opened again, if nobody says."""

FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Seconds between two attempts; each delay is twice the one before."""

STEADY_SECONDS = 20.0
"""A link that has lasted so long has carried something, and is lost anew."""

GOODBYE_SECONDS = 2.0
"""How long telling the target that nobody comes again may take."""


class OutgoingSession:
    """The session of one migration, once it was offered and the target has taken it."""

    def __init__(
        self,
        parameters: params.MigrationParameters,
        handlers: block.BlockSaveHandlers,
        save_state: savevm.SaveState,
        link: connection.Connection,
        asked: questions.Questions,
        measured: figures.Figures,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Set here, then read-only.
        self._parameters = parameters
        self._seconds = RECONNECT_SECONDS if parameters.reconnect is None else parameters.reconnect
        self._block = handlers
        self._savevm, self._connection = save_state, link
        self._questions = asked
        self._figures = measured
        self._clock = clock
        self._bundling = bundling.Bundling(parameters, handlers, save_state, link, asked, measured.stats)
        self._barriers = barriers.Barriers(handlers, save_state, link, asked, measured, clock=clock)
        self._key_file = keyfile.KeyFile(parameters.state_dir)
        self._resuming = resuming.Resuming(link, asked, self._key_file)
        # Set while the migration begins.
        self._known: keyfile.Known | None = None
        self._key: bytes | None = None
        self._incarnation, self._is_offered, self._comes_again = 0, False, False
        self._is_base_due = parameters.digests and parameters.shared_base
        # When the present loss began, and which link is the last one.
        self._attempt = 1
        self._lost_at = self._connected_at = -math.inf
        self._acknowledged_before = 0
        self.is_completed = self._is_told = self._is_superseded = False

    # -- the beginning -------------------------------------------------------------------------------------------------

    def resume(self, *, timeout: float) -> bool:
        """Open the first link to a receiver that may wait for another process of this source, which has left its key.

        Returns whether it is open. Blocks; raises as `Resuming.connect`, and `KeyFile.find`.
        """
        known = self.find_known()
        if known is None:
            return False
        idle_timeout = self._parameters.idle_timeout
        try:
            return self._resuming.connect(known, self._most_seconds(), timeout=timeout, idle_timeout=idle_timeout)
        finally:
            if self._resuming.may_be_awaited:
                self._key, self._incarnation = known

    def find_known(self) -> keyfile.Known | None:
        """Return the session that a process before this one has left, if it is to be resumed. Raises as `resume`."""
        if self._known is None and self._parameters.resume and self._connection.takes_several:
            self._known = self._key_file.find(self._block.disks.all)
        return self._known

    @property
    def settles(self) -> bytes | None:
        """Return the key of a session of which it is known that its target has not taken the disks, if there is one."""
        return self._key if self._resuming.is_owner else None

    @property
    def key(self) -> bytes | None:
        """Return the key of the session, if there is one."""
        return self._key

    def offer(self) -> None:
        """Have START say SESSION, if there can be one; call it once the section is chosen.

        Raises :class:`~blkmig.errors.ParameterError` if somebody has asked for one, and an older target compares.
        """
        if self._block.take_answer is not None and savevm.Ability.RECOMPARE not in self._block.abilities:
            if self._parameters.reconnect:
                raise errors.ParameterError(reasons.NO_SESSION)
        elif self._can_be_offered():
            self._is_offered = True
            if self._key is None:
                self._key = os.urandom(savevm.KEY_NBYTES)
                # First: a target that has heard of the session waits for it.
                self._key_file.begin(self._block.disks.all, keyfile.Known(self._key, savevm.FIRST_INCARNATION))
            self._block.session = block.extra(block.ExtraKind.SESSION, self._session().encode())
            self._incarnation = self._incarnation or savevm.FIRST_INCARNATION  # now: who is cancelled knows it then

    def begin(self) -> None:
        """Hear what the target says to SESSION, behind its reply. Blocks."""
        if not self._is_offered:
            return
        answer = self._questions.await_session(math.inf)
        self._incarnation, self._comes_again = answer.incarnation, answer.takes_barriers and answer.waits
        if self._comes_again:
            self._key_file.warn()
            self._barriers.open()
        elif not self._resuming.is_answered:
            self._key = None  # nobody waits for us
            self._key_file.remove()

    def spread(self) -> None:
        """Have the stream go over several connections, where it is to; nothing of the first part is sent."""
        try:
            self._bundling.begin()
        except errors.ChannelError as error:
            self.go_on(error)

    def section_ended(self) -> None:
        """Send a barrier if it is due; wait if too much is not acknowledged. Blocks."""
        self._barriers.section_ended()

    def base_is_checked(self) -> None:
        """Take note that the target has compared the disks' bases: on another link that is not said again."""
        self._is_base_due = False

    def completed(self, *, is_told: bool) -> None:
        """Take note that the target has everything, and has been told the end of it if `is_told`: then nobody waits."""
        self.is_completed, self._is_told = True, is_told

    def _can_be_offered(self) -> bool:
        return (
            self._seconds > 0
            and savevm.Ability.BARRIERS in self._block.abilities
            and self._questions.is_answered
            and self._connection.takes_several
            # What other sections have sent nobody takes back.
            and sum(entry.handlers.is_active() for entry in self._savevm) == 1
        )

    def _is_base_said_again(self) -> bool:
        return savevm.Ability.RECOMPARE in self._block.abilities and self._block.base.begin_anew()

    def _session(self, *, is_over: bool = False) -> savevm.Session:
        assert self._key is not None
        seconds = 0 if is_over else self._most_seconds()
        return savevm.Session(self._key, self._incarnation, self._attempt, seconds)

    def _most_seconds(self) -> int:
        return min(math.ceil(self._seconds), savevm.MAX_SECONDS)

    # -- a link that was lost ------------------------------------------------------------------------------------------

    def go_on(self, error: errors.ChannelError) -> None:
        """Open the link again, which was lost with `error`, and take back what the target may not have. Blocks.

        Raises `error` if there is no session, or its time is over; TargetFailed if the target has failed meanwhile.
        """
        is_no_link = isinstance(error, errors.LocalFileError | errors.DamagedOnTheWay)
        if not self._comes_again or is_no_link or (self._is_base_due and not self._is_base_said_again()):
            if self._block.format == "blkmig" and not is_no_link:
                reasons.advise(error, compares=self._block.take_answer is not None, base_is_due=self._is_base_due)
            raise error
        self._lose_link(error)
        nbytes = block.take_back_in_flight(self._block.blk_mig)
        nbytes += self._barriers.go_on(self._connect_again(error, lambda answer: answer.last_ack))
        self._figures.link_is_back(nbytes)
        self._figures.enter("active")

    def ask_again(self, error: errors.ChannelError, ask: Callable[[], T]) -> T:
        """Open the link again, which was lost with `error` behind COMMIT, and return what `ask` does there. Blocks.

        Raises `error` if there is no session, or its time is over, and what `ask` says but for links that are lost.
        """
        if not self._comes_again:
            raise error
        number = self._questions.number

        def go_on(answer: savevm.SessionAnswer) -> T:
            if answer.last_number != number:
                raise errors.StreamError(f"the target knows END {answer.last_number}, not {number}", position=0)
            self._barriers.ask_again(answer.last_ack)
            return ask()

        self._lose_link(error)
        done = self._connect_again(error, go_on)
        self._figures.link_is_back(0)
        self._figures.enter("device")
        return done

    def _lose_link(self, error: errors.ChannelError) -> None:
        """Reset the link, which was lost with `error`, and say that it is opened again."""
        self._connection.abort()
        self._note_loss()
        logger.warning("the link was lost, and is opened again, for %g s at most: %s", self._seconds, error)
        self._figures.enter("reconnecting")
        self._figures.notify(lambda: stats.Reconnecting(self._figures.elapsed(), str(error)))

    def _note_loss(self) -> None:
        """Begin to count the time of this loss, unless the link has carried nothing since the last one."""
        now, acknowledged = self._clock(), self._barriers.acknowledged
        if now - self._connected_at >= STEADY_SECONDS or acknowledged > self._acknowledged_before:
            self._lost_at = now
        self._acknowledged_before = acknowledged

    def _connect_again(self, error: errors.ChannelError, go_on: Callable[[savevm.SessionAnswer], T]) -> T:
        """Try until the target answers; return what `go_on` makes of that, unless it loses the link once more."""
        deadline, delay = self._lost_at + self._seconds, FIRST_DELAY
        while True:
            try:
                return go_on(self._attempt_once(max(deadline - self._clock(), FIRST_DELAY)))
            except errors.ChannelError as again:
                self._connection.abort()
                if self._clock() + delay >= deadline:
                    error.add_note(f"the link did not come back within {self._seconds:g} s: {again}")
                    raise error from again
            self._connection.rest(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    def _attempt_once(self, seconds: float) -> savevm.SessionAnswer:
        self._attempt += 1
        f = self._connection.connect_again(
            self._session().again(),
            timeout=min(seconds, self._parameters.connect_timeout),
            idle_timeout=self._parameters.idle_timeout,
        )
        answer = self._questions.await_session(seconds)
        if answer.incarnation != self._incarnation:
            self._is_superseded = True
            raise errors.InDoubt(reasons.SUPERSEDED.format(self._connection.uri))
        f.set_rate_limit(int(self._parameters.max_bandwidth))
        if self._block.blk_mig.bulk_completed:
            f.limit_queue()  # as the link before, at the end of the bulk phase
        self._bundling.begin()
        self._block.link_is_back(f)
        self._questions.link_is_back(answer.last_number)
        self._connected_at = self._clock()
        return answer

    def close(self) -> None:
        """Tell a target that waits for us that nobody comes again. Blocks for a moment; twice does no harm.

        The key stays where that may not be known.
        """
        is_over = self.is_completed
        if self._key is not None and not (self._is_superseded or self._is_told):
            is_over = self._connection.has_target_failed or self._say_goodbye() or is_over
        if is_over:
            self._key_file.remove()
        self._key_file.close()

    def _say_goodbye(self) -> bool:
        """Return whether the target has been told, as far as that is seen here."""
        self._attempt += 1
        word, self._key = self._session(is_over=True).again(), None
        return self._connection.say_goodbye(word, GOODBYE_SECONDS)
