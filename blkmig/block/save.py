# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``block`` section, sending side: the handlers and the order in which they live.

::

    save_setup ──► { save_live_iterate }* ──► save_live_complete_precopy ──► save_cleanup
        │                                                                        ▲
        └────────────── a failure or a cancel, at any moment ───────────────────┘

All handlers are called by one thread, the migration thread. Two invariants hold everywhere: a block's dirty bits are
cleared before it is read, and a block has at most one read in flight. An exception between setup and cleanup may leave
a block taken and not sent: after it, nothing but `save_cleanup` is possible.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from .. import _core, channel, disk, errors, params, passage, savevm
from . import (
    base,
    choice,
    compressing,
    description,
    dirty,
    engine,
    extras,
    lastround,
    setup,
    start,
    state,
    table,
    wire,
)
from . import log as sentlog

SECTION_SECONDS = 0.1
"""A section ends after this long, so that other handlers have their turn: QEMU's window."""


class BlockSaveHandlers(savevm.SaveVMHandlers):
    """Sends those of the `disks` that can be sent, as the section that is said by `format`.

    The disks are in use from `save_setup` to `save_cleanup`; they are not closed.
    """

    def __init__(
        self,
        disks: Iterable[disk.BlockBackend],
        parameters: params.MigrationParameters,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.disks = choice.DiskChoice(disks, parameters)
        """Which of them are sent. With its `is_described`, a sealed description with what `description` returns will
        end the stream."""

        self.format: wire.Format = "block"
        """The section that is written; ``blkmig`` needs a description. Set it before `save_setup`."""

        self.abilities = savevm.Ability(0)
        """What the target of a section ``blkmig`` can do beyond the first edition, and this end, too."""

        self.take_answer: state.TakeAnswer | None = None
        """What gets the target's answers, where it holds old copies and only what differs is to be sent. Set it before
        `save_setup`."""

        self.resumes = False
        """The target is to go on with what an earlier migration has left. Set it before `save_setup`."""

        self.table: tuple[table.TableDisk, ...] = ()
        """The disks as a section ``blkmig`` says them, from `save_setup` on."""

        self.proves = False
        """The disks are proven beside the stream: see `prove_beside_stream`."""

        self.session = b""
        """The record that says which session a section ``blkmig`` belongs to. Set it before `save_setup`."""

        self._parameters, self._clock = parameters, clock
        self._blk_mig: state.BlkMigState | None = None
        self.base = base.BasePhase()
        """What goes before the bulk phase, from `setup_parts` on, for a target that understands what it says."""

        # From `save_setup` on.
        self._departure: passage.Departure
        self._fetches: dirty.FetchAhead

    # -- what to do --------------------------------------------------------------------------------------------------

    def set_params(self, *, blk_enable: bool, shared_base: bool) -> None:
        """Choose what is sent, as `DiskChoice.set_params` does.

        Raises :class:`~blkmig.errors.StateError` after `save_setup`.
        """
        if self._blk_mig is not None:
            raise errors.StateError("the parameters cannot be changed", state="active", required="none")
        self.disks.set_params(blk_enable=blk_enable, shared_base=shared_base)

    def prove_beside_stream(self) -> None:
        """Prove the disks beside the stream in place of digests at its end, where all can be. Before `save_setup`."""
        if self._parameters.digests and not self.disks.shared_base and all(map(choice.is_read_twice, self.disks.all)):
            self.proves, self._parameters = True, dataclasses.replace(self._parameters, digests=False)
            if self._parameters.granularity == "auto" and not any(each.is_written for each in self.disks.all):
                # Nobody writes, so blocks are not proven in pieces, of which each would take a hash of its own.
                self._parameters = dataclasses.replace(self._parameters, granularity=_core.BLOCK_SIZE)

    def is_active(self) -> bool:
        """Return whether disks are to be sent."""
        return self.disks.is_enabled

    @property
    def blk_mig(self) -> state.BlkMigState:
        """Return the state of the migration, between `save_setup` and `save_cleanup`."""
        if self._blk_mig is None:
            raise errors.StateError("the block section is not set up", state="none", required="active")
        return self._blk_mig

    def state_if_set_up(self) -> state.BlkMigState | None:
        """Return the state of the migration, None before `save_setup` and after `save_cleanup`."""
        return self._blk_mig

    def sent_disks(self) -> list[disk.BlockBackend]:
        """Return the disks that are sent, between `save_setup` and `save_cleanup`."""
        return [bmds.backend for bmds in self.blk_mig.bmds_list]

    def cancel(self) -> None:
        """Make calls that wait in a disk raise Cancelled. From any thread and any signal handler: it takes no lock."""
        for backend in self.disks.all:
            backend.cancel()

    # -- the life of the section -------------------------------------------------------------------------------------

    def save_setup(self, f: channel.OutputQEMUFile) -> None:
        """Take every writable disk into use, start dirty tracking on all of them, write EOS. All or nothing."""
        if self._blk_mig is not None:
            raise errors.StateError("the block section is set up already", state="active", required="none")
        disks, shared_base, has = self.disks.sent(), self.disks.shared_base, savevm.Ability
        can = {"can_check": has.CHECKS in self.abilities, "can_compress": has.ZSTD in self.abilities}
        can |= {"compares": self.take_answer is not None, "shared_base": shared_base}
        self._departure = passage.departure(disks, f, self._parameters, **can)
        blk_mig = state.BlkMigState(
            reads=compressing.chosen(self._departure, self._parameters),
            zero_blocks=self._parameters.zero_blocks,
            has_checks=self._departure.checked,
            leaves_zeros_out=has.ZEROS in self.abilities and self._parameters.zero_blocks,
        )
        if self.take_answer is not None:
            from . import compare  # here: a plain copy has no old one to compare with
            blk_mig.comparison = compare.Comparison(self.take_answer, blk_mig)
        try:
            for bmds in setup.taken_into_use(
                disks, self._departure, self._parameters, shared_base=shared_base, section=self.format
            ):
                blk_mig.bmds_list.append(bmds)
                blk_mig.total_sector_sum += bmds.geometry.total_sectors
            blk_mig.dirty_disk = len(blk_mig.bmds_list)  # no dirty round is under way
            if self.proves:
                blk_mig.prove()
            if self._departure.payload == "lent":
                f.share_pages()
            if self.format == "blkmig":
                self.table = start.table_of(
                    blk_mig.bmds_list, self.disks.empty, shared_base=shared_base, resumes=self.resumes
                )
                f.put_buffer(table.encode(self.table) + self.session)
            marks = start.marks_of(blk_mig.bmds_list, self.disks.empty) if self._tells_by_eos() else 0
            marks |= self._departure.told * wire.SHARES_PAGES
            f.put_be64(marks << _core.SECTOR_BITS | _core.FLAG_EOS)
        except BaseException as error:
            with errors.keeping(error):
                blk_mig.release()
            raise
        self._blk_mig, self._fetches = blk_mig, dirty.FetchAhead(self._clock)

    def link_is_back(self, f: channel.OutputQEMUFile) -> None:
        """Go on with `f`, as with the link before that was lost."""
        if self._departure.payload == "lent":
            f.share_pages()

    def setup_parts(self) -> list[bytes]:
        """Return what says the disks' sizes before their blocks come, and announces what only their bases hold."""
        blk_mig = self.blk_mig
        said = start.sizes_of(blk_mig.bmds_list, self.disks.empty) if self._tells_by_eos() else []
        if (said or self.format == "blkmig") and self.disks.shared_base and self._parameters.digests:
            said += self.base.begin(blk_mig, start.marks_of(blk_mig.bmds_list, self.disks.empty))
        return said

    def iterate_parts(self) -> list[bytes]:
        """Return what is said of the disks besides their blocks: what only the base holds, and what is proven."""
        return self.base.take_words() + self.proof_parts()

    def proof_parts(self) -> list[bytes]:
        """Return what was proven since the last call."""
        proven = self.blk_mig.proofs
        bodies = [] if proven is None else proven.take_records()
        found = b"".join(extras.extra(extras.ExtraKind.PROOF, body) for body in bodies)
        return [table.records(found)] if found else []

    def save_live_iterate(self, f: channel.OutputQEMUFile) -> int:
        """Send blocks until the section is long enough, the rate limit is reached, or nothing is left in this round.

        Returns 1 if everything that is known to be dirty was sent, else 0. Errors of disks and of the channel are
        raised; then the section has no EOS, as QEMU does it, and only `save_cleanup` may follow.
        """
        blk_mig = self._begin_section()
        for bmds in blk_mig.bmds_list:
            bmds.backend.check_source()
        deadline = self._clock() + SECTION_SECONDS
        if not self.base.is_over:
            f.flush()  # what was said last
            self.base.hash_some(lambda: self._clock() >= deadline)
        else:
            self._fetches.look(blk_mig)
            while not f.rate_limit_exceeded() and engine.send_some(blk_mig, f) and self._clock() < deadline:
                if blk_mig.log is not None and blk_mig.log.ranges >= sentlog.MOST_RANGES:
                    break  # nothing more before some of it is acknowledged
            if blk_mig.comparison is not None:
                blk_mig.comparison.section_ends(blk_mig, f)
        f.put_be64(_core.FLAG_EOS)
        for bmds in blk_mig.bmds_list:
            if bmds.tree is not None:
                bmds.tree.settle()
        if self.is_round_over() and not blk_mig.is_last_round:
            self._fetches.begin_round(blk_mig)
        blk_mig.is_interrupted = False
        return int(self.save_live_pending() == 0)

    def is_round_over(self) -> bool:
        """Return whether everything that was dirty when the round began is sent; of bulk, everything there is."""
        blk_mig = self.blk_mig
        return blk_mig.bulk_completed and dirty.round_over(blk_mig) and not blk_mig.submitted

    def save_live_pending(self) -> int:
        """Return how many bytes of the disks are still to be sent: not yet read by bulk, dirty, and in flight."""
        blk_mig = self.blk_mig
        if blk_mig.is_fixed:
            return 0
        return blk_mig.bulk_remaining_bytes() + blk_mig.dirty_bytes() + blk_mig.in_flight_bytes

    def mark_one_block(self) -> None:
        """Have a block be sent again: the one that was sent last, whose contents are likely to be at hand."""
        blk_mig = self.blk_mig
        if blk_mig.bmds_list:
            bmds, block = blk_mig.last_sent or (blk_mig.bmds_list[0], 0)
            bmds.dirty_bitmap.mark_block(block)

    @property
    def last_round(self) -> lastround.LastRound:
        """Return the last round, which may begin now."""
        return lastround.LastRound(self.blk_mig, self.base)

    def save_live_complete_precopy(self, f: channel.OutputQEMUFile) -> None:
        """Send everything that is left, with the writers held by the caller; nothing is in flight on return.

        Blocks that bulk has not sent yet are sent, too: an early end costs time, never contents. After
        `LastRound.check` nothing is left, and the writers need not be held any more. Raises what that raises.
        """
        blk_mig = self._begin_section()
        if not blk_mig.is_fixed:
            self.last_round.send_all(f)
        blk_mig.is_interrupted = False
        f.put_be64(100 << _core.SECTOR_BITS | _core.FLAG_PROGRESS)
        f.put_be64(_core.FLAG_EOS)

    def save_cleanup(self, *, waits: bool = True) -> None:
        """Wait for reads in flight, unless one hangs, release the trackers, let the disks go. Twice does no harm."""
        if self._blk_mig is not None:
            blk_mig, self._blk_mig = self._blk_mig, None
            self.base.give_up()
            blk_mig.release(waits=waits)

    def description(self, *, as_tree: bool = False) -> dict[str, Any]:
        """Return what the vmdescription says of the disks, once all is sent and before `save_cleanup`.

        With `as_tree`, the digests are those whose computation takes no longer for a larger disk.
        """
        form: description.DigestForm | None = None
        if self._parameters.digests:
            form = "tree" if as_tree else "flat"
        disks = self.disks
        about = description.describe(self.blk_mig.bmds_list, disks.empty, incremental=disks.shared_base, form=form)
        return about | ({"proof": description.PROOF_ALGORITHM} if self.proves else {})

    # -- details -----------------------------------------------------------------------------------------------------

    def _tells_by_eos(self) -> bool:
        """Whether EOS words say something of the disks: nothing to a QEMU, and nothing that a table says."""
        return self.disks.is_described and not self._parameters.qemu and self.format == "block"

    def _begin_section(self) -> state.BlkMigState:
        """Return the state, unless a section before this one was ended by an exception."""
        blk_mig = self.blk_mig
        if blk_mig.is_interrupted:
            raise errors.StateError("a section was not written to its end", state="failed", required="active")
        blk_mig.is_interrupted = True
        return blk_mig
