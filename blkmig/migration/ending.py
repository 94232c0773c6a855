# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of an outgoing migration, with the writers held: the last blocks, and who has the disks.

::

    a copy    last blocks ─ check ─ RELEASE ─ END n ─ READY n ─ COMMIT n ─ DONE n ─ the stream's end
    a move    last blocks ─ END n, check, READY n ─ COMMIT n ─ DONE n ─ the stream's end ─ REFUSE

    where the target cannot do that, as a QEMU:
    a copy    last blocks ─ check ─ RELEASE ─ the stream's end ─ the target's word
    a move    last blocks ─ PING, check, PONG ─ the stream's end ─ the target's word ─ REFUSE

A blkmig of the first edition has FLUSH and READY in the place of PING and PONG. The move of a section ``blkmig`` sends
a FLUSH before its pause, too, so that the target has little to flush in it, and stores its note meanwhile.

**One owner.** Until COMMIT is handed to the kernel the source owns the disks. From then on the writers of a move are
let go by one thing only: the target says that it has not taken the disks. The note, stored before the pause begins,
tells whoever comes after this process was killed. A link that is lost from then on is opened again, to say COMMIT n
once more: a target that has taken the disks says DONE again, one to which it has not come takes them now.

The last blocks go as PART, as those of any round, so that the pause can be given up (`pause.py` says when, and why
nothing is lost by it). What a copy holds is decided when the last block is in the channel and nobody has written
meanwhile; so its writers wait for nothing that comes after. A move ends once only, so the target is asked for a sign
before that: a target that hangs until then costs a pause, and leaves no doubt who owns the disk.

Migration thread only, but for `may_be_complete`, which the pause asks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from .. import block, errors, params, savevm
from . import connection, endpoints, figures, note, outgoingsession, pause, questions, reasons

STALE_SECONDS = 0.01
"""If the target's flush in the pause takes longer, somebody may have written since it was asked whether anybody has."""


class Ending:
    """The end of one migration; `send_section` sends one section of the last round."""

    def __init__(
        self,
        parameters: params.MigrationParameters,
        handlers: block.BlockSaveHandlers,
        save_state: savevm.SaveState,
        link: connection.Connection,
        asked: questions.Questions,
        measured: figures.Figures,
        sources: endpoints.Sources,
        session: outgoingsession.OutgoingSession,
        send_section: Callable[[], object],
    ) -> None:
        # Set here, then read-only.
        self._parameters = parameters
        self._block = handlers
        self._savevm = save_state
        self._connection = link
        self._questions = asked
        self._figures = measured
        self._sources = sources
        self._session = session
        self._send_section = send_section
        self.note = note.Note(parameters.state_dir)
        self.has_begun = False
        """What cannot be taken back may have left, END of the section or COMMIT: there is no way back to the rounds."""

        self._has_moved = False
        """The target has said DONE to a move: from now on the note goes with the migration's end, and not before."""

        # Where that stands in the stream which makes the target the owner, once it has been put: COMMIT, or EOF.
        self._last: tuple[Any, int] | None = None

    def send(self, held: pause.Pause) -> None:
        """Bring the migration to its end, with the writers held. Raises :class:`~.pause.GivenUp`."""
        self._send_last_round(held)
        if self._hands_over():
            self._hand_over(held)
            return
        if self._parameters.writers_after == "refuse":
            self._end_a_move(held)
        else:
            self._end_a_copy(held)
        self._session.completed(is_told=True)

    def flush_ahead(self) -> bool:
        """Have a move's target flush what it has while the writers still run, so that the pause has little to flush.

        Only a section ``blkmig`` can ask for that; returns whether it was asked. Blocks.
        """
        if self._parameters.writers_after != "refuse" or self._block.format != "blkmig":
            return False
        self._questions.begin_barrier(self._savevm)
        self.note.store(self._questions.number + 1)  # beside the flush it takes nobody's time
        self._questions.end_barrier()
        return True

    def may_be_complete(self) -> bool:
        """Return whether a target may own the disks, and has not said that it failed; a file uses no disks."""
        if self._last is None or self._connection.has_target_failed or self._sources.is_stream_in_a_file:
            return False
        f, position = self._last
        return bool(f.transferred > position)

    def _send_last_round(self, held: pause.Pause) -> None:
        self._connection.f.set_rate_limit(0)
        self._block.last_round.begin()
        if self._parameters.writers_after == "release":
            self._connection.f.limit_queue(is_longer=True)  # the writers of a copy wait for no more than that
        self._figures.close_round()
        self._figures.begin_round(self._figures.pending())
        while not self._block.is_round_over():
            held.check()
            self._send_section()
        held.check()

    # -- in four messages --------------------------------------------------------------------------------------------

    def look_for_notes(self) -> None:
        """Refuse a move of disks that may have moved before, before anybody connects. Blocks; raises as `Note.look`.

        What the session has noted that is resumed is settled by its receiver: `begin_note` looks again.
        """
        if self._parameters.writers_after == "refuse":
            known = self._session.find_known()
            settled = None if known is None else known.key
            self.note.look(
                [backend for backend in self._block.disks.all if not backend.is_read_only], settled=settled
            )

    def begin_note(self) -> None:
        """Find a place for the note of a move, before anything is sent. Blocks; raises as `Note.begin`."""
        if savevm.Ability.COMMIT in self._block.abilities and self._kind() == savevm.Kind.MOVE:
            self.note.begin(self._block.sent_disks(), key=self._session.key, settled=self._session.settles)

    def noting(self, held: pause.Pause) -> contextlib.AbstractContextManager[None]:
        """Have the note say it for an attempt, the body of a ``with``, and behind it if the target owns the disks, or
        may: then it tells so until the caller is told, for the target may still be comparing proofs.
        """
        return self.note.standing(self._questions.number + 1, lambda: self._has_moved or held.is_in_doubt())

    def close(self) -> None:
        """Let the note go; one that still says something stays, unless how that came out is known by now. Twice does
        no harm."""
        self.note.close(is_settled=self._has_moved)

    def _hands_over(self) -> bool:
        """Return whether it is in four messages; what other sections have to say comes at the stream's end only."""
        return savevm.Ability.COMMIT in self._block.abilities and self._is_alone()

    def _kind(self) -> savevm.Kind:
        if self._parameters.writers_after == "release":
            return savevm.Kind.COPY
        is_vm = any(backend.awaits_switchover for backend in self._block.sent_disks())
        return savevm.Kind.VM if is_vm else savevm.Kind.MOVE

    def _hand_over(self, held: pause.Pause) -> None:
        kind, f = self._kind(), self._connection.f
        if kind == savevm.Kind.COPY:
            self._check_last_round(held)
            self._figures.stats.downtime = held.release()
        about = self._vmdescription()
        self._questions.begin_end(self._savevm, about)
        if kind == savevm.Kind.COPY:
            self._questions.end_barrier(all_is_sent=True)
        else:
            self._check_last_round(held)  # beside the target's flush
            self._await_ready(held)
            held.begin_commit()
        self.has_begun, self._last = True, (f, f.position)  # before the first byte can leave
        done = self._commit(kind)
        self._has_moved = kind == savevm.Kind.MOVE
        # First: the target waits for it, and its disks cannot be given back any more. If the link breaks now, it may
        # wait for another one, to say DONE again; whatever fails behind that, it has everything.
        self._session.completed(is_told=self._send_the_rest(about))
        self._end_with(held, has_names=not done.nameless)
        self._figures.stats.notes += [f"at the target: {refusal.text}" for refusal in done.nameless]
        if kind == savevm.Kind.COPY and done.nameless:  # of a move the disks are there, and must not be used here
            raise reasons.nameless(done.nameless, self._block.table)

    def _await_ready(self, held: pause.Pause) -> None:
        """Wait for READY; if that has taken its time, look once more whether nobody has written."""
        looked_at = time.monotonic()
        self._questions.end_barrier(all_is_sent=True)
        if time.monotonic() - looked_at > STALE_SECONDS:
            self._check_clean(held)

    def _commit(self, kind: savevm.Kind) -> savevm.Done:
        """Hand the disks over, and return what the target says to it. Blocks."""

        def ask() -> savevm.Done:
            self._questions.commit(self._savevm, kind)
            self._figures.update()  # which tells the caller, who may take his time
            return self._questions.await_done()

        try:
            return ask()
        except errors.ChannelError as error:
            if self.may_be_complete():
                return self._session.ask_again(error, ask)
            self.has_begun, self._last = False, None  # nothing of it has left
            raise

    def _send_the_rest(self, about: dict[str, Any]) -> bool:
        """End the stream, for whoever reads it, and return whether that was done: the target has all that it needs, so
        a link that breaks is none."""
        with contextlib.suppress(errors.ChannelError, errors.Cancelled):
            self._savevm.state_complete_precopy(self._connection.f)
            self._savevm.state_end(self._connection.f, about)
            self._figures.update()
            if not self._block.proves:
                self._connection.end_stream()
            return True
        return False

    def _end_with(self, held: pause.Pause, *, has_names: bool = True) -> None:
        """Tell the caller what the target has said, and refuse the writers of a move, whatever interrupts that."""
        try:
            if has_names and self._connection.return_path is not None:
                self._figures.complete()
        finally:
            if self._parameters.writers_after == "refuse":
                self._figures.stats.downtime = held.refuse()

    # -- in the way of the first edition -----------------------------------------------------------------------------

    def _end_a_copy(self, held: pause.Pause) -> None:
        self._check_last_round(held)
        if self._is_alone():
            self._figures.stats.downtime = held.release()
            self._send_end()
        else:
            # What other sections have to say belongs to the moment at which the writers stand still.
            held.begin_end()
            self._send_end()
            self._connection.f.flush()
            self._figures.stats.downtime = held.release()
        self._send_eof()
        self._await_target()
        self._end_with(held)

    def _end_a_move(self, held: pause.Pause) -> None:
        self._questions.begin_barrier(self._savevm)
        self._check_last_round(held)  # beside the target's answer
        self._questions.end_barrier()
        held.begin_end()
        self._send_end()
        self._send_eof()
        held.end_has_left()
        self._await_target()
        self._end_with(held)

    def _check_last_round(self, held: pause.Pause) -> None:
        self._check_clean(held)
        self._figures.update()
        self._figures.close_round()

    def _check_clean(self, held: pause.Pause) -> None:
        try:
            self._block.last_round.check()
        except errors.DeviceError:
            held.check()  # writers that go on do write
            raise

    def _is_alone(self) -> bool:
        return sum(entry.handlers.is_active() for entry in self._savevm) == 1

    def _send_end(self) -> None:
        self.has_begun = True
        with self._connection.explaining_errors():
            self._savevm.state_complete_precopy(self._connection.f)

    def _send_eof(self) -> None:
        """Send the end of the stream; a target that has given its word already has not waited for it."""
        f, about = self._connection.f, self._vmdescription()
        self._last = f, f.position
        with self._connection.explaining_errors():
            self._savevm.state_end(f, about)
        self._connection.check_cancelled()

    def _await_target(self) -> None:
        self._figures.update()  # which tells the caller, who may take his time: no bound of the pause is counted here
        self._connection.await_target(goes_on=self._block.proves)
        self._sources.complete_output()

    def _vmdescription(self) -> dict[str, Any]:
        """Return what a reader of the stream should know; QEMU reads and ignores it.

        Raises what speaks against sending it: something of the target's, or of the sources.
        """
        self._questions.check_target()
        notes = self._figures.stats.notes
        notes += [each for each in self._sources.changes(strict=self._parameters.digests) if each not in notes]
        about = self._block.description(as_tree=self._questions.knows_trees)
        return {"page_size": 4096, "devices": [], "blkmig": about}
