# SPDX-License-Identifier: GPL-2.0-or-later
"""What an outgoing migration asks its target before the stream's end, and what the target answers on the return path.

::

    which section?           PING                      HELLO, or PONG
    digests as a tree?       PING                      PONG, at any time before the pause
    are you alive?           PING                      ALIVE, again and again while something takes long
    do you take the disks?   TABLE                     REPLY
    is it the same base?     PING                      PONG
    have you everything?     PING, in blkmig FLUSH     PONG, in blkmig READY
    could you take it?       END                       READY
    take it                  COMMIT                    DONE

The target may say at any time that it has failed. On a one-way channel nobody is asked, and nobody is waited for.
All of this belongs to the migration thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from .. import block, errors, savevm
from . import connection, hearing, reasons

BASE_PING = 0x62617365
"""The value of the PING that asks whether the target has compared the disks' bases."""

BARRIER_PING = 0x656E6400
"""PINGs that ask whether the target has taken everything have this value plus 1, 2, 3 ...: ``end`` and a number."""


class Questions(hearing.Hearing):
    """The questions to the target of `link`, which gets what `handlers` send."""

    def __init__(
        self,
        link: connection.Connection,
        handlers: block.BlockSaveHandlers,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(link, clock)
        # Set here, then read-only.
        self._block = handlers
        # Migration thread only.
        self._barriers = 0

    @property
    def number(self) -> int:
        """Return the number of the last FLUSH or END."""
        return self._barriers

    @property
    def is_answered(self) -> bool:
        """Whether the way back is open."""
        return self._connection.return_path is not None

    def ask_for_trees(self, state: savevm.SaveState) -> None:
        """Ask whether the target knows digests in the form of a tree; it has until the pause to say so."""
        if self._connection.return_path is not None:
            state.send_ping(self._connection.f, savevm.ASK_TREES)

    def look(self) -> None:
        """Raise if the caller cancels, or if the target has ended the migration. Does not wait."""
        self._connection.check_cancelled()
        self.check_target()

    def check_target(self) -> None:
        """Raise if the target has ended the migration: before the stream's end, its word is never one of success.

        It does not wait. Other messages that have come are passed over.
        """
        path = self._connection.return_path
        with self._connection.losing("looking for what the target says"):
            while path is not None and path.wait_readable(0):
                self._read_before_end(path)

    def ask_for_blkmig(self, state: savevm.SaveState, seconds: float) -> savevm.Hello | None:
        """Ask which versions of the section ``blkmig`` the target takes; None if it does not say so in `seconds`."""
        with self._connection.explaining_errors():
            state.send_ping(self._connection.f, savevm.ASK)
        with self._connection.losing("asking the target which section it takes"):
            for kind, value in self._heard_within(seconds):
                if isinstance(value, savevm.Hello):
                    return value
                if kind == savevm.MIG_RP_MSG_PONG and value == savevm.ASK:
                    return None
        if not self.has_heard:
            self._connection.take_silence_for_one_way()
        return None

    def ask_for_signs_of_life(self, state: savevm.SaveState) -> None:
        """Ask a target that has said HELLO to say ALIVE while something takes long; an older one does not know it."""
        with self._connection.explaining_errors():
            state.send_ping(self._connection.f, savevm.ASK_ALIVE)

    def await_reply(self) -> None:
        """Wait for the target to take the disks of a section ``blkmig``; a one-way channel has no answer. Blocks.

        A target that takes its time says so, and then has ten times as long. Raises
        :class:`~blkmig.errors.TargetFailed` if it refuses some. It has changed nothing then.
        """
        path = self._connection.return_path
        if path is None or self._block.format != "blkmig":
            return
        doing, idle, self._is_reply_due = "waiting for the target to take the disks", path.idle_timeout, True
        longest, alive = idle * savevm.PATIENCE, None
        with self._connection.losing(doing):
            for _, value in self._heard_within(idle or math.inf, longest=longest):
                if isinstance(value, savevm.Alive):
                    alive = value
                if isinstance(value, savevm.Reply):
                    self._is_reply_due = False
                    if not value.refusals:
                        return
                    self._connection.has_target_failed = True
                    raise reasons.refused(value.refusals, self._block.table, path.position)
            why = f"it has not said within {idle:g} s whether it does (--idle-timeout)"
            if alive is not None:
                why += f", or within {longest:g} s with signs of life; the last one: {alive.text}"
            raise errors.ChannelTimeout(doing, uri=self._connection.uri, cause=why)

    def await_session(self, seconds: float) -> savevm.SessionAnswer:
        """Return what the target says to a SESSION, within `seconds` and the idle time-out. Blocks."""
        path = self._connection.return_path
        assert path is not None
        doing, self._is_session_due = "waiting for the target's word on the session", True
        seconds = min(seconds, path.idle_timeout or math.inf)
        with self._connection.losing(doing):
            for _, value in self._heard_within(seconds):
                if isinstance(value, savevm.SessionAnswer):
                    self._is_session_due = False
                    return value
            why = f"it has said nothing of it within {seconds:.3g} s"
            raise errors.ChannelTimeout(doing, uri=self._connection.uri, cause=why)

    def await_resumed(self) -> savevm.Resumed:
        """Return what the target says to another process of a session, within the idle time-out. Blocks."""
        path = self._connection.return_path
        assert path is not None
        doing, self._is_resumed_due = "waiting for the target's word on what is to be resumed", True
        with self._connection.losing(doing):
            for _, value in self._heard_within(path.idle_timeout or math.inf):
                if isinstance(value, savevm.Resumed):
                    self._is_resumed_due = False
                    return value
            why = f"it has said nothing of it within {path.idle_timeout:g} s (--idle-timeout)"
            raise errors.ChannelTimeout(doing, uri=self._connection.uri, cause=why)

    def await_bundled(self, seconds: float, *, is_ready: bool) -> savevm.Bundled:
        """Return what the target says next to a BUNDLE, within `seconds`: that it waits, or what it has. Blocks."""
        doing, self._is_bundle_due = "waiting for the target to take several connections", True
        with self._connection.losing(doing):
            for _, value in self._heard_within(seconds):
                if isinstance(value, savevm.Bundled) and value.is_ready == is_ready:
                    self._is_bundle_due = False
                    return value
            why = f"it has said nothing of them within {seconds:g} s"
            raise errors.ChannelTimeout(doing, uri=self._connection.uri, cause=why)

    def link_is_back(self, number: int) -> None:
        """Go on behind the last FLUSH or END that the target has seen, which it may have answered on the lost link."""
        self._barriers = number
        self.proof_result = None  # it counts what came on the lost link
        self.digests.forget()

    def await_while(self, is_due: Callable[[], bool], doing: str) -> None:
        """Read what the target says as long as `is_due`. Blocks.

        A target that takes its time gives signs of life, for which it may be ten times as long idle.
        """
        path = self._connection.return_path
        assert path is not None
        patience = savevm.Patience(path, time.monotonic)
        with self._connection.losing(doing):
            while is_due():
                _, value = self._read_before_end(path)
                patience.heard(value)

    def begin_barrier(self, state: savevm.SaveState) -> None:
        """Ask the target to answer when it has taken everything that was sent; `end_barrier` waits for it.

        A section ``blkmig`` asks for more: that everything is on stable storage.
        """
        if self._connection.return_path is not None:
            self._barriers += 1
            with self._connection.explaining_errors():
                if self._block.format == "blkmig":
                    state.state_part(self._connection.f, "blkmig", block.flush_records(self._barriers))
                else:
                    state.send_ping(self._connection.f, BARRIER_PING + self._barriers)

    def begin_end(self, state: savevm.SaveState, description: dict[str, Any]) -> int:
        """Say that the image is whole, and what it is; `end_barrier` waits until the target could take it.

        Returns the number of this END.
        """
        self._barriers += 1
        body = savevm.End.encode(self._barriers, description)
        self._say_extra(state, block.ExtraKind.END, body)
        return self._barriers

    def commit(self, state: savevm.SaveState, kind: savevm.Kind) -> None:
        """Hand over the image of the last `begin_end`, which the target could take."""
        self._say_extra(state, block.ExtraKind.COMMIT, savevm.Commit(self._barriers, kind).encode())

    def _say_extra(self, state: savevm.SaveState, kind: block.ExtraKind, body: bytes) -> None:
        with self._connection.explaining_errors():
            state.state_part(self._connection.f, "blkmig", block.records(block.extra(kind, body)))

    def await_done(self) -> savevm.Done:
        """Wait until the target has taken what `commit` handed over. Blocks.

        Raises :class:`~blkmig.errors.TargetFailed` if it says that it has not, and never will. If the link is lost,
        only a later connection can ask; after any other error nobody knows.
        """
        with self._connection.losing("waiting for the target to say that the disks are its own"):
            return self._read_done()

    def _read_done(self) -> savevm.Done:
        path = self._connection.return_path
        assert path is not None
        patience = savevm.Patience(path, time.monotonic)
        while True:
            position = path.position
            kind, value = savevm.read_message(path)
            if isinstance(value, savevm.Done) and value.number == self._barriers:
                return value
            if isinstance(value, savevm.Failure) or (kind == savevm.MIG_RP_MSG_SHUT and value):
                assert isinstance(value, savevm.Failure | int)
                raise self._connection.target_failed(value, "has not taken the disks")
            if kind == savevm.MIG_RP_MSG_SHUT:
                raise errors.StreamError("the target ends, and does not say that it has the disks", position=position)
            patience.heard(value if isinstance(value, int | savevm.Alive) else None)

    def end_barrier(self, *, all_is_sent: bool = False) -> None:
        """Wait for the answer to the last `begin_barrier`, or `begin_end`; a one-way channel has none. Blocks.

        A target that flushes gives signs of life, for which it may be ten times as long idle.
        """
        path = self._connection.return_path
        if path is None:
            return
        flushes = self._block.format == "blkmig"
        answer = (savevm.MIG_RP_MSG_PONG, BARRIER_PING + self._barriers)
        if flushes:
            answer = (savevm.MIG_RP_MSG_READY, self._barriers)
            end = time.monotonic() + path.idle_timeout * savevm.PATIENCE
        what = reasons.ALL_SENT if all_is_sent else reasons.BEFORE_END
        with self._connection.losing("waiting for the target to take what was sent"):
            while self._read_before_end(path, what) != answer:
                if flushes and time.monotonic() < end:
                    path.payload_came()

    def await_base_checked(self, state: savevm.SaveState) -> None:
        """Wait until the target has compared what it was told of the disks' bases; a one-way channel does not tell.

        Blocks. A target that takes its time says so in PONGs, and how far it is. Raises what it has to say.
        """
        path = self._connection.return_path
        if path is None:
            return
        with self._connection.explaining_errors():
            state.send_ping(self._connection.f, BASE_PING)
        patience = savevm.Patience(path, time.monotonic)
        with self._connection.losing("waiting for the target to compare the disks' bases"):
            while (heard := self._read_before_end(path)) != (savevm.MIG_RP_MSG_PONG, BASE_PING):
                patience.heard(heard[1])

    def _is_answer(self, value: object) -> bool:
        """Return whether a PONG answers one of our PINGs."""
        is_barrier = isinstance(value, int) and BARRIER_PING < value <= BARRIER_PING + self._barriers
        return is_barrier or value in (savevm.ASK_TREES, BASE_PING, savevm.ASK)
