# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of an incoming migration whose source hands its disks over: END, READY, COMMIT, DONE.

::

    storing ─ END n: judge, flush ─► READY n ─ ready ─ COMMIT n: names are free ─► committing ──────────► taken
       ▲                                         │                                  "committing" is stored, names,
       └──── anything of a next round ───────────┘                                  folders, unlock: DONE n

A link that is lost takes nothing back: on the next one COMMIT n comes again, and DONE n is the answer again.

**One owner.** Up to ``committing`` any error is told to the source as one of a target that has not taken the disks, and
that stays so: nothing can make a COMMIT count afterwards. From there on nothing takes them back, neither an error nor
a cancel nor a lost link, and nothing that was made is removed. Between the two, when the store of ``committing`` has
failed, nobody can know: nothing is said to the source, whose writers stay held, and a restart reads the file.

The order in `_take` is the proof: the names are looked at before the store, because a name that is missing afterwards
does not give the disks back; the disks are unlocked before DONE, because the source's QEMU may start its target then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from .. import block, errors, savevm
from . import farewell, heartbeat, received, safekeeping, targets
from .announcement import Announcement

State = Literal["storing", "ready", "committing", "taken"]

Judge = Callable[[savevm.End], Announcement]
"""Check that everything came that the source says it has sent; raise if not."""


class Taking:
    """What the receiver does about END and COMMIT. The loading thread's, but for `is_decided`."""

    def __init__(
        self,
        came: targets.TargetSet,
        handlers: block.BlockLoadHandlers,
        loader: savevm.LoadVM,
        beats: heartbeat.Heartbeat,
        judge: Judge,
        figures: received.IncomingFigures,
        check_cancelled: Callable[[], None],
        *,
        unlocks: bool,
    ) -> None:
        # Set here, then read-only.
        self._targets = came
        self._block = handlers
        self._loader = loader
        self._beats = beats
        self._judge = judge
        self._figures = figures
        self._check_cancelled = check_cancelled
        self._unlocks = unlocks
        # The loading thread's.
        self._number = 0
        self._counts: list[tuple[int, int]] = []
        """How many blocks and packs of each disk had come when it was ready."""

        self._through = math.inf
        """How many bytes of the present link the source has sent when it has said COMMIT, at most."""

        self._kind = savevm.Kind.COPY
        self._is_confirmed = False  # every disk has its name, and nothing but that
        self.nameless: dict[str, errors.MigrationError] = {}
        """Why disks have not got their names, by what messages call them."""

        self.announced = Announcement()
        """What the source says of the disks that were taken."""

        self.on_told: Callable[[], None] = lambda: None
        """Called when DONE was said."""

        # Only ever go on; read by any thread.
        self._state: State = "storing"
        self.is_told = False
        """The source has DONE, or its link has broken: nothing is owed to it any more."""

        self.is_known = False
        """Another process of the source has asked, and has heard that the disks are this host's."""

        handlers.on_extra[block.ExtraKind.END] = self._take_end
        handlers.on_extra[block.ExtraKind.COMMIT] = self._take_commit

    @property
    def is_decided(self) -> bool:
        """Whether a cancel comes too late: the disks are this host's own, or may be."""
        return self._state in ("committing", "taken")

    @property
    def is_taken(self) -> bool:
        """Whether the disks are this host's own."""
        return self._state == "taken"

    def _take_end(self, body: bytes, position: int) -> None:
        """Bring an image that is whole to stable storage, and say READY. Raises whatever speaks against it."""
        if not self._loader.is_awaited or self.is_decided:
            raise errors.StreamError("END where nobody waits for its answer", position=position)
        said = savevm.parse_end(body, position)
        self._block.take_number(said.number, "END", position)
        self.announced = self._judge(said)
        safekeeping.make_durable(self._targets, self._beats, self._check_cancelled)
        self._targets.check_takeable()
        self._number, self._counts = said.number, self._count()
        self._state = "ready"
        self._loader.way_back.ready(said.number)

    def _count(self) -> list[tuple[int, int]]:
        return [(device.statistics.blocks, device.coverage.packs.packs) for device in self._targets.devices]

    def _take_commit(self, body: bytes, position: int) -> None:
        """Take the disks, and say DONE."""
        said = savevm.parse_commit(body, position)
        self._through = position + len(body) + _AROUND_BODY
        if self.is_taken and (said.number, said.kind) == (self._number, self._kind):
            self._say_done()  # it did not come, and is asked for on another link
            return
        if not self._is_fresh() or said.number != self._number:
            raise errors.StreamError(f"COMMIT {said.number}, and no END of that number before it", position=position)
        self._targets.beside.settle()  # a flush that fails is told while the source is the owner
        self._targets.check_takeable()
        self._kind = said.kind
        self._state = "committing"  # before the last look: a cancel that comes later is told that it is too late
        try:
            self._check_cancelled()
        except errors.Cancelled:
            self._state = "ready"
            raise
        with self._beats as beats:
            beats.text = "the disks get their names"
            self._take()
        self._beats.end()
        self._say_done()
        self._figures.taken(is_usable=self._unlocks and not self.nameless)
        if not self.nameless:
            self._is_confirmed = self.later(self._targets.confirm)  # first: a disk that is marked counts as half made
        if self._is_confirmed:
            # Not flushed: after a power failure it may say "committing", which gives names that are given already.
            self.later(lambda: self._targets.session.store("committed", self._number, is_durable=False))

    def _is_fresh(self) -> bool:
        """Return whether nothing has come since an image was ready."""
        return self._state == "ready" and self._counts == self._count()

    def keep_ready(self, rewind: Callable[[], None]) -> None:
        """Have `rewind` go back with what was counted, after a lost link: an image that is ready stays so."""
        if self._is_fresh():
            rewind()
            self._counts = self._count()
        else:
            self._state = "storing"
            rewind()

    def _take(self) -> None:
        try:
            self.nameless = self._targets.take(self._number)
        except errors.DeviceError as error:
            raise errors.InDoubt(_UNKNOWN.format(error)) from error
        self._state = "taken"
        self._block.close()
        if self._unlocks:
            self.later(self._targets.close)

    def _say_done(self) -> None:
        labels = [entry.label for entry in self._block.table or ()]
        refusals = [
            savevm.Refusal(labels.index(label), farewell.errno_of(error), str(error))
            for label, error in self.nameless.items()
            if label in labels
        ]
        self.later(lambda: self._loader.way_back.done(self._number, refusals))
        self.is_told = True
        self.on_told()

    def later(self, call: Callable[[], object]) -> bool:
        """Do what has to be done once the disks are taken; what fails is told, and gives nothing back. Return whether
        it was done."""
        try:
            call()
        except errors.MigrationError as error:
            self._figures.stats.notes.append(f"the disks are here, but: {error}")
            return False
        return True

    def is_refused(self, error: errors.MigrationError) -> None:
        """Say with `error`, which ends the migration, who has the disks, where the source may not know that."""
        if self._state == "ready":
            error.add_note(
                "the disks were not taken, and never will be: the source is the owner; if it says that it is in "
                "doubt, let its writers go on"
            )

    def resumed(self) -> savevm.Resumed:
        """Return what another process of the source is told once the disks are taken."""
        return savevm.Resumed(savevm.Waiting.OWNER, self._number)

    def link_was_lost(self, error: errors.MigrationError) -> None:
        """Take note that the link broke behind DONE, which the source may not have, or that nobody waits any more."""
        if self.is_known or self._kind != savevm.Kind.MOVE:
            self.source_knows()  # or not: of what is no move it has a copy to itself, or a QEMU that decides
            return
        self._figures.stats.notes.append(
            f"the disks are this host's now, and the source was not heard to its end ({error}): if it says that it is "
            "in doubt, they have moved all the same"
        )

    def has_gone_on(self, nbytes: int) -> bool:
        """Return whether a source has DONE, of whose link `nbytes` came before it was lost; ask once for each link.

        Behind COMMIT it sends nothing before that.
        """
        through, self._through = self._through, math.inf
        return nbytes > through

    def source_knows(self) -> None:
        """Take note that the source has DONE: it has ended the stream."""
        if self._kind == savevm.Kind.VM:
            self._figures.stats.notes.append("the disks are those of a VM: in use here once its QEMU has handed over")
        # First, and here, where nobody waits: without a journal, the end of the session file may get to stable storage
        # before that of a mark does, and then the disk would count as half made.
        if self._is_confirmed and self.later(self._targets.sync):
            self._targets.session.remove()
        else:
            self.later(self._targets.session.nobody_asks)

    def check_names(self) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if a disk that was taken has not got its name."""
        for first, *others in [list(self.nameless.values())] if self.nameless else []:
            for other in others:
                first.add_note(f"and: {other}")
            what = _UNNAMED if self._targets.session.state is None else _NAMED_LATER
            first.add_note(f"the disk is this host's all the same, under its hidden name in that folder: {what}")
            raise first


_AROUND_BODY = 8 + 4 + 8 + 5
"""Bytes of a COMMIT besides its body: word and length before that, EOS and the footer behind it."""

_NAMED_LATER = "start this command again, which gives it its name"
_UNNAMED = "rename it yourself, before anything else is received there, which would begin with it anew"

_UNKNOWN = (
    "in doubt: the source has handed its disks over, and whether that is on stable storage here is not known ({0}). "
    "Its writers stay held, and nothing was removed here. Look at the storage, then start this command again: it reads "
    "what is there, and says whether the disks are this host's. If they are not, let the source's writers go on"
)

def as_if_ended(stream: savevm.LoadedStream, end: savevm.End) -> savevm.LoadedStream:
    """Return what a stream holds at `end`, as if it were over there."""
    ended = tuple(section._replace(ended=True) for section in stream.sections)
    return stream._replace(
        sections=ended, vmdescription=end.description, vmdescription_state=end.state
    )
