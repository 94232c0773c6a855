# SPDX-License-Identifier: GPL-2.0-or-later
"""One loading of an incoming migration: from the stream's first byte to its end, into targets of its own.

An incoming migration has one, or one for each process of the source that resumes while it is waited for: then the
loading before is given up with what it has, and the next one begins as in a receiver that is started anew (see
`incomingmigration`). All of it belongs to the thread that loads, but for `cancel`, `is_decided` and `stop_waiting`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from .. import block, channel, errors, params, savevm
from ..savevm import LoadVM  # loaded now, and not when a source waits for the answer
from . import (
    admission,
    announcement,
    comparing,
    farewell,
    gathering,
    heartbeat,
    incomingsession,
    judging,
    leaving,
    lobby,
    readback,
    received,
    safekeeping,
    taking,
)
from . import targets as load_targets


class Loading:
    """Loads a stream into `targets`, as `parameters` say; the sections of the disks are registered in `registry`.

    `prepare` the targets before anybody can connect. Leaving the ``with`` closes everything.
    """

    def __init__(
        self,
        targets: Mapping[str, load_targets.Target],
        parameters: params.IncomingParameters,
        registry: savevm.SaveState,
        figures: received.IncomingFigures,
        *,
        into: str | os.PathLike[str] | None,
        by_index: Mapping[int, load_targets.Target] | None,
        observer: savevm.StreamObserver | None,
        on_link: Callable[[channel.InputQEMUFile], None],
        check_cancelled: Callable[[], None],
    ) -> None:
        # Set here, then read-only.
        self.parameters = parameters
        self.savevm = registry
        self._figures = figures
        self._observer = observer
        self._check_cancelled = check_cancelled
        self._on_link = on_link
        self._block = block.BlockLoadHandlers(self._open)
        figures.load(self._block)
        self.stats = figures.stats
        self.targets = load_targets.TargetSet(targets, parameters, self.stats, into=into, by_index=by_index)
        self.session = incomingsession.IncomingSession(
            self._block,
            self.targets,
            figures,
            idle_timeout=parameters.idle_timeout,
            on_link=self._take_link,
            check_cancelled=check_cancelled,
        )
        self._read_back = readback.ReadBack(parameters, self._block, self.stats, check_cancelled)
        self.targets.beside.add(self._read_back.close, lambda: comparing.stop(self._answers))
        self._answers: comparing.Answering | None = None  # set by `load`, while the stream is loaded
        self._beats = heartbeat.Heartbeat(lambda *_: None)  # says something on the link of `load`
        self._buffers, self._room = block.LoadBuffers(), block.CoverageRoom()
        for name in block.FORMATS:
            registry.unregister_savevm(name, 0)
            registry.register_savevm_live(name, 0, 1, self._block)
        # Set by `load`.
        self._f: channel.InputQEMUFile
        self._is_exposed = self._resumes = False
        self.taken: taking.Taking | None = None
        self.word = farewell.Word()
        self.is_awaited = False
        """The source waits, or has waited, for the word that all is on stable storage."""

    def prepare(self, uri: str) -> None:
        """Open the targets that were named; see `TargetSet.prepare`."""
        self.targets.prepare(uri)

    def __enter__(self) -> Self:
        """Return the loading itself, which is prepared."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the threads and close the targets; those that did not become complete stay incomplete. Twice is fine."""
        close_targets = functools.partial(self.targets.__exit__, exc_type, exc, traceback)
        threads = [self.session.close, self._beats.close]
        let_go = [device.let_go for device in self.targets.devices]
        errors.each([*threads, close_targets, *let_go])  # these last: nothing writes any more

    @property
    def is_decided(self) -> bool:
        """Whether a cancel comes too late: the disks are this host's own, or may be."""
        return self.taken is not None and self.taken.is_decided

    def stop_waiting(self) -> None:
        """Do not wait for a source that may ask, once that is decided. From any thread."""
        self.session.stop_waiting()

    def cancel(self) -> None:
        """Have whatever waits in a disk raise Cancelled. From any thread."""
        self.targets.cancel()

    # -- steps -------------------------------------------------------------------------------------------------------

    def load(
        self,
        f: channel.InputQEMUFile,
        listener: channel.Listener,
        *,
        resumed: savevm.Session | None,
        is_exposed: bool,
    ) -> None:
        """Load the stream, which `listener` has accepted, and bring it to its end, good or bad.

        `resumed` is what its source has said before, if it resumes; `is_exposed` whether it may be anybody. Raises
        :class:`~.lobby.TakenOver` if another process of the source resumes meanwhile.

        The source's guest may stand still until our word comes. So nothing that grows with the disks is done before
        that but to bring to stable storage what is not there yet: what was written is read back afterwards.
        """
        self._f, self._is_exposed, self._resumes = f, is_exposed, resumed is not None
        self._block.on_extra |= self._buffers.on_extra()
        self._block.on_described = lambda *counts: self.targets.check_counts(*counts, position=f.position)
        self._block.on_sizes = self.targets.check_announced
        answers: dict[int, savevm.Answer] = {savevm.ASK_TREES: savevm.KNOWS_TREES, savevm.ASK_ALIVE: savevm.Alive()}
        offered = comparing.abilities(self.parameters, self._is_exposed) & gathering.abilities(listener)
        answers[savevm.ASK] = savevm.Hello(abilities=offered & self._read_back.abilities)
        loader = LoadVM(self.savevm, f, observer=self._observer, answers=answers, on_loss=self.session.next_link)
        self._beats.beat = loader.beat
        self._block.on_table = lambda table, position: self._admit(table, position, loader, f)
        self._block.on_flush = lambda number: self._flush(number, loader)
        if self.parameters.incremental:
            from . import basecheck
            check = basecheck.BaseCheck(loader.beat, self._check_cancelled).check
            self._block.on_base = check if self.parameters.verify else lambda *_: None
        self.taken = taken = taking.Taking(
            self.targets,
            self._block,
            loader,
            self._beats,
            lambda end: self._judge(taking.as_if_ended(loader.summary(), end)),
            self._figures,
            self._check_cancelled,
            unlocks=not self.parameters.verify,
        )
        self.session.attach(
            listener,
            loader,
            f,
            taken,
            self._read_back,
            resumed=resumed,
            refusal=self._why_not_resumed,
            forget_answers=lambda: comparing.link_lost(self._answers),
        )
        lost: errors.MigrationError | None = None
        try:
            with comparing.answering(loader) as self._answers:
                stream = loader.loadvm()
            self.is_awaited = loader.is_awaited
        except errors.MigrationError as error:
            if not taken.is_taken:
                if not isinstance(error, errors.InDoubt):
                    taken.is_refused(error)
                    self._give_reason(loader, error)
                raise
            self.is_awaited = loader.is_awaited
            taken.link_was_lost(error)
            lost = error
        except lobby.TakenOver:
            raise
        except BaseException as error:
            if not taken.is_decided:
                self._give_reason(loader, error)
            raise
        else:
            f = self._f  # another one, if the link was lost
            if not taken.is_taken:
                self._end_with_a_word(f, loader, stream)
                return
            if not self.parameters.verify:  # else the source listens on, and may come again
                self.session.end()
            taken.source_knows()
        self._figures.set_totals()
        if self.parameters.verify:
            self._verify(taken.announced, loader, f, lost)
        taken.later(f.close)
        taken.check_names()

    def _verify(
        self, announced: announcement.Announcement, loader: LoadVM, f: channel.InputQEMUFile,
        lost: errors.MigrationError | None = None,
    ) -> None:  # fmt: skip
        """Read the targets back, as far as that was not done before, when the source has had our word."""
        if announced.is_proven:
            self._read_back.finish(loader, f, lost)
        else:
            safekeeping.verify(self.targets, announced, self._check_cancelled, is_told=True)

    def _end_with_a_word(self, f: channel.InputQEMUFile, loader: LoadVM, stream: savevm.LoadedStream) -> None:
        """Bring a stream that came whole, and whose source waits for no more than our word, to its end."""
        try:
            announced = self._judge(stream)
            if stream.behind is not None:
                from . import trailing
                self.stats.notes.append(trailing.describe(stream.behind, f.uri))
            safekeeping.make_durable(self.targets, self._beats, self._check_cancelled)
            self.session.close()
            self._check_cancelled()
            self._figures.set_totals()
            verifies_later = self.parameters.verify and loader.is_awaited
            if self.parameters.verify and not verifies_later:
                safekeeping.verify(self.targets, announced, self._check_cancelled, is_told=False)
            if not verifies_later:
                self.targets.close()  # whoever waits for our word may open the disks the moment it comes
            self.targets.publish()
        except BaseException as error:
            self._give_reason(loader, error)
            raise
        self.word.give(loader, f, self.targets.confirm, goes_on=announced.is_proven)
        if verifies_later:
            self._verify(announced, loader, f)
        try:
            f.close()
        except errors.Cancelled as error:  # too late: nobody takes anything back
            self.stats.notes.append(f"the disks are here, but: {error}")
        except errors.ChannelError as error:  # of a command
            error.add_note("all disks are complete here")
            raise

    def _give_reason(self, loader: LoadVM, error: BaseException) -> None:
        self.session.give_reason(error)
        farewell.give_reason(loader, self._f, error)

    def _take_link(self, f: channel.InputQEMUFile) -> None:
        self._f = f
        self._on_link(f)

    def _why_not_resumed(self) -> str:
        """Return why no other process of the source can resume; "" if one can. From any thread."""
        why_not = comparing.why_not_resumed(self.parameters, self._is_exposed)
        has_session_file = self.targets.session.state is not None
        return why_not or leaving.why_not(self.targets.came, has_session_file=has_session_file)

    def _open(self, name: str, position: int) -> block.BlkLoadDevice:
        """Open the target of the disk called `name`, which appears at `position`."""
        device = self._figures.watched(name, self.targets.open(name, position))
        device.join(self._buffers, self._room)
        return device

    def _admit(
        self, table: Sequence[block.TableDisk], position: int, loader: LoadVM, f: channel.InputQEMUFile
    ) -> Mapping[bytes, block.BlkLoadDevice]:
        """Open the targets of all disks of a section ``blkmig``, and tell the source."""
        self.targets.announced = self._block.sizes
        self.targets.leaving.resumes = comparing.check_table(self.parameters, table, position, self._is_exposed)
        devices = admission.admit(table, position, self.targets, self._open, loader, self._beats)
        self._read_back.begin(table, devices, loader, f)
        has_come = lambda: self._f.payload_came()  # noqa: E731 - of the link that is read by then
        comparing.begin(self._answers, self.parameters, self._block, table, devices, has_come)
        return devices

    def _flush(self, number: int, loader: LoadVM) -> None:
        """Bring all to stable storage before the pause, and let go of what would take time to free in it."""
        if loader.is_awaited:
            safekeeping.make_durable(self.targets, self._beats, self._check_cancelled)
            loader.way_back.ready(number)
            for device in self.targets.devices:
                device.rest()

    def _judge(self, stream: savevm.LoadedStream) -> announcement.Announcement:
        if self._resumes and not stream.sections:
            raise errors.TruncatedStream("the source gave up before it sent anything", position=stream.nbytes)
        self._figures.all_has_come()
        comparing.end(self._answers)
        return judging.judge(
            stream, self._block, self.targets, self._open, self.parameters, self.stats, self._read_back.check
        )
