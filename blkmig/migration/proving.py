# SPDX-License-Identifier: GPL-2.0-or-later
"""Proofs between two blkmigs: what the source does about them, beside what `block` does while it sends.

::

    source   bulk, rounds with PROOF ─ all is read again, and compared ─► pause ─► word ─ PROOF of pieces, PROVEN
    target   read back, compare       PROOF RESULT: so many                         word                   PROOF RESULT

The pause waits until there is nothing to read or to compare on either side, so its length has nothing to do with the
size of the disks. After the word nothing is at stake any more but the verdict. Migration thread only.
"""

from __future__ import annotations

import contextlib
import time

from .. import block, channel, errors, savevm
from . import connection, figures, questions, rounds

WAIT_SECONDS = 0.02
"""Between two looks whether all is compared."""


class Proving:
    """What proves the disks of `handlers` to the target of `link`; does nothing where they are not proven so."""

    def __init__(
        self,
        handlers: block.BlockSaveHandlers,
        save_state: savevm.SaveState,
        link: connection.Connection,
        asked: questions.Questions,
        measured: figures.Figures,
        sections: rounds.Rounds,
    ) -> None:
        # Set here, then read-only.
        self._block = handlers
        self._savevm = save_state
        self._connection = link
        self._questions = asked
        self._figures = measured
        self._rounds = sections
        # Migration thread only.
        self._state: object = None
        self._progressed = 0.0

    def until_compared(self) -> None:
        """Before the pause: return when all blocks were read again, and the target has compared what it can by then.

        Rounds go on meanwhile, also small ones: what the writers dirty in a long wait would make the pause longer.
        Raises :class:`~blkmig.errors.ChannelTimeout` if neither side gets any further. Blocks.
        """
        while self._is_behind():
            if self._block.blk_mig.bulk_completed:
                self._tell()
            self._rounds.iterate()

    def _is_behind(self) -> bool:
        blk_mig, result = self._block.blk_mig, self._questions.proof_result
        if blk_mig.proofs is None:
            return False
        if not blk_mig.bulk_completed or blk_mig.proofs.is_behind():
            return True
        said = blk_mig.proofs.records
        return said > 0 and (result is None or result.records < said or result.due > 0)

    def _tell(self) -> None:
        """Wait a moment, tell the target what is proven meanwhile, and look what it says: it answers each part."""
        proofs, path = self._block.blk_mig.proofs, self._connection.return_path
        assert proofs is not None
        assert path is not None
        if proofs.is_behind():
            proofs.wait(WAIT_SECONDS)
        else:
            path.wait_readable(WAIT_SECONDS)
        self._questions.look()
        result = self._questions.proof_result
        self._check_progress(path, (proofs.records, proofs.blocks, result and (result.records, result.due)))
        with self._connection.explaining_errors():
            for part in self._block.proof_parts() or [block.records(b"")]:
                self._savevm.state_part(self._connection.f, "blkmig", part)

    def _check_progress(self, path: channel.InputQEMUFile, state: object) -> None:
        now, longest = time.monotonic(), path.idle_timeout * savevm.PATIENCE
        if state != self._state:
            self._state, self._progressed = state, now
        elif longest and now - self._progressed > longest:
            why = f"nothing more was read again or compared for {longest:g} s (10 times --idle-timeout)"
            raise errors.ChannelTimeout("proving the disks", uri=self._connection.uri, cause=why)

    def finish(self) -> None:
        """After the target's word: prove what was sent last, hear what the target has found, and close the stream.

        Blocks. Raises :class:`~blkmig.errors.ContentMismatch` if a disk differs. A lost link, a cancel and a time-out
        take nothing back any more: they are :class:`~blkmig.errors.NotVerified`.
        """
        proofs, f, path = self._block.blk_mig.proofs, self._connection.f, self._connection.return_path
        if proofs is None or path is None:
            return
        try:
            with self._connection.losing("proving the disks"):
                for body in proofs.last_records():
                    f.put_buffer(block.extra(block.ExtraKind.PROOF, body))
                f.put_buffer(block.extra(block.ExtraKind.PROVEN, proofs.proven()))
                f.flush()
                result = self._await_result(savevm.Patience(path, time.monotonic))
        except errors.MigrationError as error:  # which sounds as if the source were the owner, or should try again
            why = "comparing was cut short" if isinstance(error, errors.Cancelled) else error
            raise errors.NotVerified(
                f"the target has taken everything and is complete, but not verified: {why}"
            ) from error
        with contextlib.suppress(errors.ChannelError, errors.Cancelled):  # its verdict is here
            self._connection.end_stream()
        self._figures.stats.notes += proofs.notes
        if result.outcome == savevm.Outcome.FAILED:
            raise errors.NotVerified(
                "the target has taken everything and is complete, but not verified: it cannot tell whether its disks "
                f"are equal: {result.text}"
            )
        if result.outcome == savevm.Outcome.DIFFERS:
            raise self._mismatch(result)
        self._figures.stats.verified = True

    def _await_result(self, patience: savevm.Patience) -> savevm.ProofResult:
        path = self._connection.return_path
        assert path is not None
        while True:
            _, value = savevm.read_message(path)
            if isinstance(value, savevm.ProofResult):
                if value.outcome != savevm.Outcome.UNDER_WAY:
                    return value
                patience.heard((value.records, value.due))
            else:
                patience.heard(None)

    def _mismatch(self, result: savevm.ProofResult) -> errors.ContentMismatch:
        table = self._block.table
        name = table[result.disk].label if result.disk < len(table) else str(result.disk)
        return errors.ContentMismatch(
            f"disk {name!r}: the target's storage holds something else than this disk did in the pause; they differ "
            f"for the first time between the offsets {result.offset} and {result.offset + result.nbytes}: suspect the "
            "storage on either side, keep both, and compare them there",
            device=name,
            offset=result.offset,
        )
