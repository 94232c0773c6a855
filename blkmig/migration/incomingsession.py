# SPDX-License-Identifier: GPL-2.0-or-later
"""The session of an incoming migration, if its source begins one: barriers, and a link that is lost and comes again.

::

    START: SESSION ─ records ─ BARRIER n ─ records ─ the link is lost
                                                     │  wait; the targets stay open and locked
                                                     └─ a newer link ─ drain ─ SESSION: last ACK ─ records ...
    COMMIT ─ DONE ─ the link is lost ─ wait; nothing is open any more ─ a newer link ─ SESSION ─ COMMIT ─ DONE
    another process of the source, which resumes ─ `TakenOver`: what has come is left, and compared by the next loading
                                                 └ behind DONE: RESUMED, it has the disks; nobody else is waited for

What came before the last ACK stays. What came after it may have come or not, the source sends it again; so the counts
that the description will be held against go back to the last ACK, at both ends (see `block.log`). Half a record has no
effect: whatever is written, or counted, is so when all of it has come.

**No COMMIT counts behind that.** This thread alone takes the disks, and it is the one that raises `TakenOver`: so a
receiver that says to the next process of the source that the disks are the source's never takes them by what an older
one has said. All of it belongs to the loading thread; `acknowledging` and `lobby` have threads of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from .. import block, channel, errors, logs, savevm
from . import acknowledging, afterwards, farewell, gathering, lobby, readback, received, taking, targets

logger = logs.Logger(__name__)

DEAD_SECONDS = 20.0
GRACE_SECONDS = 30.0
MOST_SECONDS = 3600.0
"""A lost source is waited for as long as it tries to come again, but no longer than an hour, and these times before
and after: so long it may take to notice the loss, and to find the way."""

MOMENT_SECONDS = 0.5
"""How long what a source sends that has DONE may be on its way when the link cannot be read any more."""

LAST_SECONDS = 0.5
"""How long what a source still sends is dropped, so that it finds why this end was cancelled."""


class IncomingSession:
    """The session of the stream that `handlers` load into `came`. `on_link` is told of each link that comes."""

    def __init__(
        self,
        handlers: block.BlockLoadHandlers,
        came: targets.TargetSet,
        figures: received.IncomingFigures,
        *,
        idle_timeout: float,
        on_link: Callable[[channel.InputQEMUFile], None],
        check_cancelled: Callable[[], None],
    ) -> None:
        # Set here, then read-only.
        self._block = handlers
        self._targets = came
        self._figures = figures
        self._idle_timeout = idle_timeout
        self._on_link = on_link
        self._check_cancelled = check_cancelled
        # Set by `attach`.
        self._listener: channel.Listener
        self._loader: savevm.LoadVM
        self._f: channel.InputQEMUFile
        self._taking: taking.Taking
        self._read_back: readback.ReadBack
        self._refusal: Callable[[], str]
        self._forget_answers: Callable[[], None]
        # Set by the source's SESSION, or at once for one that resumes.
        self._resumed: savevm.Session | None = None
        self._seconds, self._incarnation = 0.0, savevm.FIRST_INCARNATION
        self._acknowledger: acknowledging.Acknowledger | None = None
        self._lobby: lobby.Lobby | None = None
        self._is_patient = False

    def attach(
        self,
        listener: channel.Listener,
        loader: savevm.LoadVM,
        f: channel.InputQEMUFile,
        taken: taking.Taking,
        read_back: readback.ReadBack,
        *,
        resumed: savevm.Session | None,
        refusal: Callable[[], str],
        forget_answers: Callable[[], None],
    ) -> None:
        """Take part in the loading of `f`, which `listener` has accepted; the disks are handed over to `taken`, and
        what proves them goes to `read_back`.

        `resumed` is what a source has said that resumes. `refusal` says why none can at this receiver, "" if one can.
        `forget_answers` forgets what was asked on a lost link, and returns when none of it is answered any more.
        """
        self._listener, self._loader, self._f, self._taking = listener, loader, f, taken
        self._read_back, self._resumed = read_back, resumed
        taken.on_told = self._hurry
        self._refusal, self._forget_answers = refusal, forget_answers
        if resumed is not None and resumed.seconds and listener.takes_several:
            self._open_lobby(resumed, resumed.incarnation, goes_on=False)
        self._block.on_section_begins = self._section_begins
        self._block.on_barrier = self._take_barrier
        self._block.on_extra[block.ExtraKind.SESSION] = self._take
        loader.way_back.on_bundle = self._take_bundle if listener.takes_several else None

    def give_reason(self, error: BaseException) -> None:
        """Tell a source that would come again that this end was cancelled; other errors are told as ever. Blocks."""
        if self._lobby is not None and isinstance(error, errors.Cancelled):
            self._lobby.say_last(savevm.last_words(farewell.status_of(error), farewell.failure_of(error)), LAST_SECONDS)

    def stop_waiting(self) -> None:
        """Wait for no other link any more, and for nothing of a source that has DONE. From any thread, or a signal
        handler; only for disks that are, or may be, this host's."""
        self._listener.cancel()
        if self._taking.is_told:
            self._f.cancel()

    def _hurry(self) -> None:
        """Have idle threads end, and wait for the rest of the stream for a moment only if somebody has cancelled."""
        if self._acknowledger is not None:
            self._acknowledger.end()
        try:
            self._check_cancelled()
        except errors.Cancelled:
            self._f.set_idle_timeout(farewell.CLOSE_SECONDS)

    def end(self) -> None:
        """Have the thread that waits for the source end, beside what is left to do: the stream has come to its end."""
        if self._lobby is not None:
            self._lobby.end()

    def close(self) -> None:
        """Stop listening; the barriers' thread ends before the targets are closed. Twice does no harm."""
        if self._lobby is not None:
            self._lobby.close()

    # -- what the source says ------------------------------------------------------------------------------------------

    def _take(self, body: bytes, position: int) -> None:
        """Begin the session that the source asks for."""
        session, before = savevm.parse_session(body, position), self._resumed
        due = (session.key, 0, 1) if before is None else (before.key, before.incarnation, 1)
        if self._acknowledger is not None or (session.key, session.incarnation, session.attempt) != due:
            raise errors.StreamError("a SESSION that begins a second time, or is not resumed", position=position)
        self._incarnation = session.incarnation or savevm.FIRST_INCARNATION
        way_back = self._loader.way_back
        self._acknowledger = acknowledging.Acknowledger(
            list(self._targets.devices), say=way_back.ack, beat=way_back.beat, wake=self._wake
        )
        self._targets.beside.settle = self._acknowledger.settle
        self._targets.beside.add(self._acknowledger.close)
        takes_barriers = self._acknowledger.can_flush
        if takes_barriers and session.seconds and self._listener.takes_several:
            if self._lobby is not None:
                self._lobby.goes_on = True
            else:
                self._open_lobby(session, self._incarnation, goes_on=True)
            self._targets.leaving.has_session = block.ExtraKind.ASK not in self._block.on_extra
        can = {"takes_barriers": takes_barriers, "waits": self._lobby is not None and self._lobby.goes_on}
        try:
            way_back.answer_session(savevm.SessionAnswer(self._incarnation, 0, 0, **can))
        except errors.ChannelError:  # a source that does not hear this comes for nothing more; another process may
            if before is None:
                self.close()
                self._lobby = None
            raise

    def _open_lobby(self, session: savevm.Session, incarnation: int, *, goes_on: bool) -> None:
        """Wait for the source whenever its link is lost."""
        self._seconds = DEAD_SECONDS + min(session.seconds, MOST_SECONDS) + GRACE_SECONDS
        self._targets.session.may_be_asked(session.key, self._seconds, self._listener.secret)
        self._listener.keep_token()
        self._lobby = lobby.Lobby(
            self._listener, session, self._f, incarnation=incarnation, goes_on=goes_on, refusal=self._refusal
        )

    def _take_bundle(self, bundle: savevm.Bundle, position: int) -> None:
        """Have the stream come over several connections, because the source wants that. Blocks."""
        if self._block.table is None:
            raise errors.StreamError("a BUNDLE before the disks are known", position=position)
        wait_at = self._lobby or gathering.Entrance(self._listener)
        with wait_at.taking(bundle.magic) as others:
            gathering.take(bundle, self._f, self._loader.way_back.bundled, others)

    def _section_begins(self) -> None:
        if self._acknowledger is None:
            is_known = self._block.format == "block" or self._block.table is not None
            if is_known and self._lobby is None:
                self._listener.close()  # nobody else is taken
            return
        self._acknowledger.check()
        if self._is_patient and not self._acknowledger.is_flushing:
            self._is_patient = False
            self._f.set_idle_timeout(self._idle_timeout)

    def _take_barrier(self, number: int, position: int) -> None:
        if self._acknowledger is None or self._taking.is_decided:
            raise errors.StreamError("a BARRIER without a session, or behind COMMIT", position=position)
        self._acknowledger.barrier(number, self._block.packs, self._read_back.count, position)
        self._is_patient = True
        # The source may wait for this one, and send nothing: as long as it would have patience with a flush.
        self._f.set_idle_timeout(self._idle_timeout * savevm.PATIENCE)

    def _wake(self) -> None:
        """Have the loading thread come to `check`, because a flush has failed."""
        if self._lobby is not None:
            self._lobby.stop_receiving()

    # -- a link that was lost ------------------------------------------------------------------------------------------

    def next_link(self, error: errors.MigrationError) -> channel.InputQEMUFile:
        """Wait for the source, and return the link on which it goes on; the last one was lost with `error`. Blocks.

        Raises `error` if it does not come, or there is no session; and what is wrong with the targets.
        """
        if self._acknowledger is not None:
            self._acknowledger.check()
        is_over = self._loader.has_ended or isinstance(error, errors.DamagedOnTheWay)
        if self._taking.is_taken and not is_over:
            is_over = self._taking.has_gone_on(self._f.count_come(MOMENT_SECONDS))
        if self._lobby is None or is_over:
            raise error
        self._figures.set_status("reconnecting")
        self._targets.leaving.is_link_away = True
        while True:
            self._lobby.break_off()
            self._loader.way_back.drop(self._f)
            arrived = self._lobby.next(self._seconds, lambda: self._say_what_is_waited_for(error))
            self._look()
            if arrived is None:
                raise error
            f = arrived.f
            self._on_link(f)
            self._look()
            if arrived.resumes:
                self._give_way(arrived, error)
            try:
                self._go_on(f)
            except errors.ChannelError:
                continue
            self._targets.leaving.is_link_away = False
            self._figures.set_status("active")
            if self._taking.is_taken:
                self._hurry()
            return f

    def _say_what_is_waited_for(self, error: errors.MigrationError) -> None:
        if self._taking.is_taken:
            logger.warning(
                "all disks are complete here, and the link was lost: their source is waited for, for %g s at most, "
                "because it may not know that yet, and asks then; an interrupt (Ctrl-C) ends the wait, and takes "
                "nothing back: %s",
                self._seconds,
                error,
            )
        else:
            logger.warning("the link was lost; its source is waited for, for %g s at most: %s", self._seconds, error)

    def _give_way(self, arrived: lobby.Arrival, error: errors.MigrationError) -> NoReturn:
        """Have another process of the source go on, or tell it that the disks are this host's."""
        if not self._taking.is_taken:
            self._targets.leaving.is_taken_over = True
            raise lobby.TakenOver(arrived)
        self._taking.is_known = afterwards.tell_owner(arrived.f, self._taking.resumed())
        raise error

    def _look(self) -> None:
        """Raise if somebody has cancelled, unless the disks are this host's: then it has only stopped waiting."""
        if not self._taking.is_taken:
            self._check_cancelled()

    def _go_on(self, f: channel.InputQEMUFile) -> None:
        """Make everything ready for what comes on `f`, and tell the source where it is to go on.
        All that came on older links is written before the answer leaves: so old bytes never win over new ones.
        """
        assert self._acknowledger is not None
        self._f = f
        f.set_idle_timeout(self._idle_timeout)
        if not self._taking.is_taken:
            self._forget_answers()  # before anything can be said on this link
        self._loader.way_back.go_on(f)
        self._figures.go_on(f)
        mark = self._acknowledger.rewind()
        if self._taking.is_taken:
            self._read_back.go_on(f, mark.proofs)
        else:
            self._taking.keep_ready(lambda: self._rewind(f, mark))
        came, can = self._block.numbers, {"takes_barriers": True, "waits": True}
        self._loader.way_back.answer_session(savevm.SessionAnswer(self._incarnation, mark.number, came, **can))

    def _rewind(self, f: channel.InputQEMUFile, mark: acknowledging.Mark) -> None:
        """Count on from the last barrier that was acknowledged."""
        for device, counts, same_bytes in mark.counts:
            device.link_lost(counts)
            device.statistics.same_bytes = same_bytes
        self._block.link_lost(f, mark.packs)
        self._read_back.go_on(f, mark.proofs)
