# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of an outgoing migration, with the writers held: the last blocks, END, EOF, the target's word.

::

    a copy    last blocks ─ check ─ RELEASE ─ END ─ EOF ─ the target's word
    a move    last blocks ─ PING, check, PONG ─ END ─ EOF ─ the target's word ─ REFUSE

Between two blkmigs, who speak the section ``blkmig``, FLUSH and READY are in the place of PING and PONG. A
move sends a FLUSH before its pause, too, so that the one in the pause finds little to do.

The last blocks go as PART, as those of any round, so that the pause can be given up (`pause.py` says when, and why
nothing is lost by it). What a copy holds is decided when the last block is in the channel and nobody has written
meanwhile; so its writers wait for nothing that comes after. A move ends once only, so the target is asked for a sign
before END leaves: a target that hangs before END costs a pause, and leaves no doubt who owns the disk.

Migration thread only, but for `may_be_complete`, which the pause asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import block, errors, params, savevm
from . import connection, endpoints, figures, pause, questions


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
        self._send_section = send_section
        # Where EOF stands in the stream, once it has been put.
        self._eof: tuple[Any, int] | None = None

    def send(self, held: pause.Pause) -> None:
        """Bring the migration to its end, with the writers held. Raises :class:`~.pause.GivenUp`."""
        self._send_last_round(held)
        if self._parameters.writers_after == "refuse":
            self._end_a_move(held)
        else:
            self._end_a_copy(held)

    def flush_ahead(self) -> None:
        """Have a move's target flush what it has while the writers still run, so that the pause has little to flush.

        Only a section ``blkmig`` can ask for that. Blocks.
        """
        if self._parameters.writers_after == "refuse" and self._block.format == "blkmig":
            self._questions.begin_barrier(self._savevm)
            self._questions.end_barrier()

    def may_be_complete(self) -> bool:
        """Return whether a target may have the whole stream, and has not said that it failed; a file uses no disks."""
        if self._eof is None or self._connection.has_target_failed or self._sources.is_stream_in_a_file:
            return False
        f, position = self._eof
        return bool(f.transferred > position)

    def _send_last_round(self, held: pause.Pause) -> None:
        self._connection.f.set_rate_limit(0)
        self._block.last_round.begin()
        self._figures.close_round()
        self._figures.begin_round(self._figures.pending())
        while not self._block.is_round_over():
            held.check()
            self._send_section()
        held.check()

    def _end_a_copy(self, held: pause.Pause) -> None:
        self._check_last_round(held)
        if self._is_alone():
            self._figures.stats.downtime = held.release()
            self._send_end()
        else:
            # What other sections have to say belongs to the moment at which the writers stand still.
            held.begin_end(moves=False)
            self._send_end()
            self._connection.f.flush()
            self._figures.stats.downtime = held.release()
        self._send_eof()
        self._await_target()

    def _end_a_move(self, held: pause.Pause) -> None:
        self._questions.begin_barrier(self._savevm)
        self._check_last_round(held)
        self._questions.end_barrier()
        held.begin_end(moves=True)
        self._send_end()
        self._send_eof()
        held.end_has_left()
        self._await_target()
        self._figures.stats.downtime = held.refuse()

    def _check_last_round(self, held: pause.Pause) -> None:
        try:
            self._block.last_round.check()
        except errors.DeviceError:
            held.check()  # writers that go on do write
            raise
        self._figures.update()
        self._figures.close_round()

    def _is_alone(self) -> bool:
        return sum(entry.handlers.is_active() for entry in self._savevm) == 1

    def _send_end(self) -> None:
        with self._connection.explaining_errors():
            self._savevm.state_complete_precopy(self._connection.f)

    def _send_eof(self) -> None:
        """Send the end of the stream; a target that has given its word already has not waited for it."""
        f = self._connection.f
        self._questions.check_target()
        self._figures.stats.notes += self._sources.changes(strict=self._parameters.digests)
        self._eof = f, f.position
        with self._connection.explaining_errors():
            self._savevm.state_end(f, self._vmdescription())
        self._connection.check_cancelled()

    def _await_target(self) -> None:
        self._figures.update()  # which tells the caller, who may take his time: no bound of the pause is counted here
        self._connection.await_target()
        self._sources.complete_output()

    def _vmdescription(self) -> dict[str, Any]:
        """Return what a reader of the stream should know; QEMU reads and ignores it."""
        about = self._block.description(as_tree=self._questions.knows_trees)
        return {"page_size": 4096, "devices": [], "blkmig": about}
