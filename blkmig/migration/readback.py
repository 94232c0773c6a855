# SPDX-License-Identifier: GPL-2.0-or-later
"""Proofs between two blkmigs, the target's side: what is told of them, and the verdict. See `block.proving`.

Belongs to the thread that loads, but for the comparing, which has a thread of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from .. import block, channel, errors, params, savevm, stats
from . import farewell, heartbeat

REPORT_SECONDS = 0.1
"""Between two reports of how far the comparing is; that it is done is told at once."""


class ReadBack:
    """What the target does about the proofs of its source; `close` it before the targets."""

    def __init__(
        self,
        parameters: params.IncomingParameters,
        handlers: block.BlockLoadHandlers,
        statistics: stats.IncomingStatistics,
        look: Callable[[], None],
    ) -> None:
        # Set here, then read-only.
        can_compare = parameters.verify and not parameters.incremental and block.can_hash()
        self.abilities = savevm.OURS if can_compare else savevm.OURS & ~savevm.Ability.PROOF
        """What is offered to the source: proofs only if somebody wants them, and they can be compared."""

        self._block = handlers
        self._stats = statistics
        self._look = look
        # Set when the table has come.
        self._proving: block.Proving | None = None
        self._numbers: list[int] = []
        self._f: channel.InputQEMUFile
        self._told: tuple[int, int] | None = None
        self._told_at = 0.0

    def begin(
        self,
        table: Sequence[block.TableDisk],
        devices: Mapping[bytes, block.BlkLoadDevice],
        loader: savevm.LoadVM,
        f: channel.InputQEMUFile,
    ) -> None:
        """Take proofs of the disks of `table`, if any are wanted, and tell the source how far they are compared."""
        if savevm.Ability.PROOF not in self.abilities:
            return
        self._numbers = [number for number, entry in enumerate(table) if entry.size]
        self._proving = block.Proving([(devices[table[number].name], table[number].size) for number in self._numbers])
        self._block.on_extra[block.ExtraKind.PROOF] = self._proving.take_proof
        self._f = f
        self._block.on_section = lambda: self._report(loader)

    def check(self, is_proven: bool, position: int) -> None:
        """Raise :class:`~blkmig.errors.StreamError` for a stream that says it is proven where nobody has offered that.
        """
        if is_proven and self._proving is None:
            raise errors.StreamError("the stream promises proofs for which nobody has asked", position=position)

    @property
    def count(self) -> int:
        """Return how many records have come that count."""
        return 0 if self._proving is None else self._proving.count

    def go_on(self, f: channel.InputQEMUFile, count: int) -> None:
        """Take what comes on `f`, because the link before it was lost, and count on from `count`."""
        self._f, self._told = f, None
        if self._proving is not None:
            self._proving.rewind(count)

    def _report(self, loader: savevm.LoadVM) -> None:
        assert self._proving is not None
        progress, now = self._proving.progress(), time.monotonic()
        if progress == self._told or (progress[1] and now - self._told_at < REPORT_SECONDS):
            return
        self._told, self._told_at = progress, now
        self._f.payload_came()  # a source that waits for the comparing has nothing else to send
        loader.way_back.proof_result(savevm.ProofResult(savevm.Outcome.UNDER_WAY, *progress))

    def finish(
        self, loader: savevm.LoadVM, f: channel.InputQEMUFile, lost: errors.MigrationError | None = None
    ) -> None:
        """After the word: take the last proofs, compare, tell the source, and raise if a disk differs. Blocks.

        `lost` is how the link was lost, if it was: then `f` is given up, and no proof that has not come comes any more.

        Raises :class:`~blkmig.errors.ContentMismatch`, and :class:`~blkmig.errors.NotVerified` after a cancel or with a
        link that is lost, or was before.
        """
        proving = self._proving
        assert proving is not None
        proving.loading_is_over()
        kinds: dict[int, block.OnExtra] = {
            block.ExtraKind.PROOF: proving.take_proof,
            block.ExtraKind.PROVEN: proving.take_proven,
        }
        try:
            with farewell.behind_the_word():
                while not proving.knows_all:
                    if lost is not None:
                        raise _not_verified(lost) from lost
                    self._await_more(f)
                    block.get_extra(f, kinds)
                    self._report(loader)
                found = proving.finish(lambda: self._report(loader), self._look, heartbeat.BEAT_SECONDS)
        except (errors.ChannelError, errors.TruncatedStream) as error:
            raise _not_verified(error) from error
        except errors.MigrationError as error:
            with contextlib.suppress(errors.MigrationError):
                result = savevm.ProofResult(savevm.Outcome.FAILED, text=str(error))
                loader.way_back.proof_result(result)
                farewell.read_on(f, farewell.CLOSE_SECONDS)
            raise
        self._stats.notes += proving.notes()
        self._tell(found, loader)
        with contextlib.suppress(errors.MigrationError):  # it may not have our verdict; ours stands all the same
            farewell.read_on(f, farewell.CLOSE_SECONDS)
        if found is not None:
            raise _mismatch(found)
        for disk in self._stats.disks.values():
            disk.verified = True

    def _await_more(self, f: channel.InputQEMUFile) -> None:
        """Wait for the next record as long as a read would, but hear a cancel, which no longer reaches the link."""
        began = time.monotonic()
        self._look()
        while not f.wait_readable(heartbeat.BEAT_SECONDS):
            self._look()
            if 0 < f.idle_timeout <= time.monotonic() - began:
                return

    def _tell(self, found: block.Difference | None, loader: savevm.LoadVM) -> None:
        result = savevm.ProofResult(savevm.Outcome.EQUAL)
        if found is not None:
            place = self._numbers[found.disk], found.offset, found.nbytes
            result = savevm.ProofResult(savevm.Outcome.DIFFERS, 0, 0, *place)
        with contextlib.suppress(errors.MigrationError):
            loader.way_back.proof_result(result)

    def close(self) -> None:
        """End what compares. Twice does no harm."""
        if self._proving is not None:
            self._proving.close()


def _not_verified(lost: errors.MigrationError) -> errors.NotVerified:
    return errors.NotVerified(
        "everything has come and is complete here, but it is not verified: the link broke while the last proofs of the "
        f"disks were waited for ({lost})"
    )


def _mismatch(found: block.Difference) -> errors.ContentMismatch:
    where = f"between the offsets {found.offset} and {found.offset + found.nbytes}"
    if not found.is_seen:
        what = f"the source has proven nothing of what is {where}: this is an error of the sender"
    else:
        what = (
            f"its storage holds something else than the source's disk did in the pause; they differ for the first time "
            f"{where}: suspect the storage on either side, keep both, and compare them there"
        )
    error = errors.ContentMismatch(f"disk {found.name!r}: {what}", device=found.name, offset=found.offset)
    error.add_note(
        "the source was told before that everything is on stable storage; if the disk has moved, look at the source's "
        "copy before anything else writes either"
    )
    return error
