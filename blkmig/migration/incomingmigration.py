# SPDX-License-Identifier: GPL-2.0-or-later
"""The incoming side of a migration: listen, load, check, make durable, and only then say that it is done."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .. import block, channel, errors, params, savevm, stats
from ..savevm import LoadVM  # loaded now, and not when a source waits for the answer
from . import (
    admission,
    announcement,
    comparing,
    farewell,
    gathering,
    incomingsession,
    judging,
    readback,
    received,
    safekeeping,
    taking,
)
from . import targets as load_targets

if TYPE_CHECKING:
    from . import figures


class IncomingMigration:
    """One migration that comes in on `uri`. Use it in a ``with``: entering listens, leaving closes everything.

    `savevm` is its registry: other live sections may be registered there before `run`. All methods but `cancel` belong
    to one thread.
    """

    def __init__(
        self,
        uri: str,
        targets: Mapping[str, load_targets.Target],
        parameters: params.IncomingParameters | None = None,
        *,
        into: str | os.PathLike[str] | None = None,
        by_index: Mapping[int, load_targets.Target] | None = None,
        on_progress: figures.OnProgress | None = None,
        observer: savevm.StreamObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.parameters = parameters or params.IncomingParameters()
        self.savevm = savevm.SaveState()
        self._block = block.BlockLoadHandlers(self._open)
        self._figures = received.IncomingFigures(self._block, on_progress, clock)
        self.stats, self.keep_maps = self._figures.stats, self._figures.keep_maps
        self._targets = load_targets.TargetSet(targets, self.parameters, self.stats, into=into, by_index=by_index)
        self._session = incomingsession.IncomingSession(
            self._block,
            self._targets,
            self._figures,
            idle_timeout=self.parameters.idle_timeout,
            on_link=self._take_link,
            check_cancelled=self._check_cancelled,
        )
        self._read_back = readback.ReadBack(self.parameters, self._block, self.stats, self._check_cancelled)
        self._buffers, self._room = block.LoadBuffers(), block.CoverageRoom()
        for name in block.FORMATS:
            self.savevm.register_savevm_live(name, 0, 1, self._block)
        self._requested_uri, self._observer = uri, observer
        self._stack = contextlib.ExitStack()
        self._listener: channel.Listener | None = None
        self._f: channel.InputQEMUFile | None = None
        self._answers: comparing.Answering | None = None  # while the stream is loaded
        self._cancel_requested = self.is_awaited = False
        """The latter: the source waits, or has waited, for the word that all is on stable storage."""

        self._taking: taking.Taking | None = None

    def __enter__(self) -> Self:
        """Listen, where the URI says so; `uri` is then the actual address."""
        self._targets.prepare(self._requested_uri)
        with contextlib.ExitStack() as stack:
            stack.push(self._targets)
            tls, allow = self.parameters.tls, self.parameters.allow
            self._listener = stack.enter_context(channel.listen(self._requested_uri, tls=tls, allow=allow))
            self._stack.push(stack.pop_all())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close everything; a migration that did not complete leaves its targets incomplete."""
        self._stack.close()

    @property
    def uri(self) -> str:
        """Return the address to send to, with the port that was chosen where none was said."""
        return self._requested_uri if self._listener is None else self._listener.uri

    @property
    def token(self) -> str:
        """Return what its sender must say, where it listens at ``tls:`` without certificates: a secret."""
        return "" if self._listener is None else self._listener.token

    @property
    def is_exposed(self) -> bool:
        """Return whether any machine may reach the address, and who does can write the targets: see `insecure`."""
        return self._listener is not None and self._listener.is_exposed and not self.parameters.insecure

    def run(self) -> stats.IncomingStatistics:
        """Wait for the source, load all disks, check and flush them, tell the source, and return the statistics.

        Blocks. On any error the source is told, and the targets are incomplete. What is verified is so behind our word.
        """
        assert self._listener is not None
        if self.stats.status != "none":
            raise errors.StateError("a migration comes in once", state=self.stats.status, required="none")
        self._figures.set_status("setup")
        try:
            self._check_cancelled()
            self._f = f = self._accept(self._listener)
            self._stack.callback(f.abort)
            self._figures.begin(f)
            self._figures.set_status("active")
            self._check_cancelled()
            with self._targets, contextlib.closing(self._read_back), contextlib.closing(self._session):
                self._load(f)
        except BaseException as error:
            cancelled = isinstance(error, errors.Cancelled) or not isinstance(error, Exception)
            with errors.keeping(error):
                self._figures.set_status("cancelled" if cancelled else "failed")
            raise
        comparing.note_what_was_not(self.parameters, self.stats, self.is_exposed)
        self.stats.notes += self._listener.notes
        self._figures.set_status("completed")
        return self.stats

    def cancel(self) -> None:
        """Stop as soon as possible: `run` raises :class:`~blkmig.errors.Cancelled`. From any thread."""
        self._cancel_requested = True
        if self._taking is not None and self._taking.is_decided:
            self._session.stop_waiting()
            return  # the disks are here by now, and the source is to know that
        if self._listener is not None:
            self._listener.cancel()
        if self._f is not None:
            self._f.cancel()
        self._targets.cancel()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _accept(self, listener: channel.Listener) -> channel.InputQEMUFile:
        """Wait for the first connection that is a migration; others are refused once its disks are known."""
        accept, idle = self.parameters.accept_timeout, self.parameters.idle_timeout
        f = listener.accept(timeout=accept, magics=[savevm.QEMU_VM_FILE_MAGIC], nbytes=savevm.HEADER_NBYTES)
        f.set_idle_timeout(idle, first=accept or 0.0)
        return f

    def _load(self, f: channel.InputQEMUFile) -> None:
        """Load the stream and bring it to its end, good or bad.

        The source's guest may stand still until our word comes. So nothing that grows with the disks is done before
        that but to bring to stable storage what is not there yet: what was written is read back afterwards.
        """
        self._block.on_extra |= self._buffers.on_extra()
        self._block.on_described = lambda *counts: self._targets.check_counts(*counts, position=f.position)
        self._block.on_sizes = self._targets.check_announced
        answers: dict[int, savevm.Answer] = {savevm.ASK_TREES: savevm.KNOWS_TREES, savevm.ASK_ALIVE: savevm.Alive()}
        assert self._listener is not None
        offered = comparing.abilities(self.parameters, self.is_exposed) & gathering.abilities(self._listener)
        answers[savevm.ASK] = savevm.Hello(abilities=offered & self._read_back.abilities)
        loader = LoadVM(self.savevm, f, observer=self._observer, answers=answers, on_loss=self._session.next_link)
        self._block.on_table = lambda table, position: self._admit(table, position, loader, f)
        self._block.on_flush = lambda number: self._flush(number, loader)
        if self.parameters.incremental:
            from . import basecheck
            check = basecheck.BaseCheck(loader.beat, self._check_cancelled).check
            self._block.on_base = check if self.parameters.verify else lambda *_: None
        self._taking = taken = taking.Taking(
            self._targets,
            self._block,
            loader,
            lambda end: self._judge(taking.as_if_ended(loader.summary(), end)),
            self.stats,
            self._check_cancelled,
            unlocks=not self.parameters.verify,
        )
        self._session.attach(self._listener, loader, f, taken, self._read_back)
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
        except BaseException as error:
            if not taken.is_decided:
                self._give_reason(loader, error)
            raise
        else:
            f = self._f or f  # another one, if the link was lost
            if not taken.is_taken:
                self._end_with_a_word(f, loader, stream)
                return
            taken.source_knows()
        self._figures.set_totals()
        if self.parameters.verify:
            self._verify(taken.announced, loader, f)
        taken.later(f.close)
        taken.check_names()

    def _verify(self, announced: announcement.Announcement, loader: LoadVM, f: channel.InputQEMUFile) -> None:
        """Read the targets back, as far as that was not done before, when the source has had our word."""
        if announced.is_proven:
            self._read_back.finish(loader, f)
        else:
            safekeeping.verify(self._targets, announced, self._check_cancelled, is_told=True)

    def _end_with_a_word(self, f: channel.InputQEMUFile, loader: LoadVM, stream: savevm.LoadedStream) -> None:
        """Bring a stream that came whole, and whose source waits for no more than our word, to its end."""
        try:
            announced = self._judge(stream)
            safekeeping.make_durable(self._targets, loader, self._check_cancelled)
            self._session.close()
            self._check_cancelled()
            self._figures.set_totals()
            verifies_later = self.parameters.verify and loader.is_awaited
            if self.parameters.verify and not verifies_later:
                safekeeping.verify(self._targets, announced, self._check_cancelled, is_told=False)
            if not verifies_later:
                self._targets.close()  # whoever waits for our word may open the disks the moment it comes
            self._targets.publish()
        except BaseException as error:
            self._give_reason(loader, error)
            raise
        try:
            farewell.give_word(loader, f, goes_on=announced.is_proven)
        except errors.ChannelError:
            raise  # the source did not get it, so the targets are taken back
        except BaseException:
            self._targets.confirm()  # it may have got it
            raise
        self._targets.confirm()
        if verifies_later:
            self._verify(announced, loader, f)
        f.close()

    def _give_reason(self, loader: LoadVM, error: BaseException) -> None:
        assert self._f is not None
        self._session.give_reason(error)
        farewell.give_reason(loader, self._f, error)

    def _take_link(self, f: channel.InputQEMUFile) -> None:
        """Take note of the link on which the source of a session goes on."""
        self._f = f
        self._stack.callback(f.abort)

    def _open(self, name: str, position: int) -> block.BlkLoadDevice:
        """Open the target of the disk called `name`, which appears at `position`."""
        device = self._figures.watched(name, self._targets.open(name, position))
        device.join(self._buffers, self._room)
        return device

    def _admit(
        self, table: Sequence[block.TableDisk], position: int, loader: LoadVM, f: channel.InputQEMUFile
    ) -> Mapping[bytes, block.BlkLoadDevice]:
        """Open the targets of all disks of a section ``blkmig``, and tell the source."""
        self._targets.announced = self._block.sizes
        self._targets.leaving.resumes = comparing.check_table(self.parameters, table, position, self.is_exposed)
        devices = admission.admit(table, position, self._targets, self._open, loader)
        self._read_back.begin(table, devices, loader, f)
        comparing.begin(self._answers, self.parameters, self._block, table, devices, f)
        return devices

    def _flush(self, number: int, loader: LoadVM) -> None:
        """Bring all to stable storage before the pause, and let go of what would take time to free in it."""
        if loader.is_awaited:
            safekeeping.make_durable(self._targets, loader, self._check_cancelled)
            loader.way_back.ready(number)
            for device in self._targets.devices:
                device.rest()

    def _judge(self, stream: savevm.LoadedStream) -> announcement.Announcement:
        self._figures.all_has_come()
        comparing.end(self._answers)
        room = self._block, self._targets, self._open, self.parameters, self.stats
        return judging.judge(stream, *room, self._read_back.check)

    def _check_cancelled(self) -> None:
        """Raise if somebody has cancelled."""
        if self._cancel_requested:
            raise errors.Cancelled("the migration was cancelled; its targets are incomplete")
