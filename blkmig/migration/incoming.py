# SPDX-License-Identifier: GPL-2.0-or-later
"""The incoming side of a migration: listen, load, check, make durable, and only then say that it is done."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from .. import block, channel, errors, params, savevm, stats
from . import targets as load_targets
from . import verdict

OnProgress = Callable[[stats.Event], None]
PROGRESS_SECONDS = 0.1


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
        on_progress: OnProgress | None = None,
        observer: savevm.StreamObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.parameters = parameters or params.IncomingParameters()
        self.stats = stats.IncomingStatistics()
        self.savevm = savevm.SaveState()
        self._targets = load_targets.TargetSet(targets, self.parameters, self.stats, into=into, by_index=by_index)
        self._block = block.BlockLoadHandlers(self._targets.open)
        self.savevm.register_savevm_live("block", 0, 1, self._block)
        self._requested_uri = uri
        self._on_progress = on_progress
        self._observer = observer
        self._clock = clock
        self._started = 0.0
        self._last_report = 0.0
        self._stack = contextlib.ExitStack()
        self._listener: channel.Listener | None = None
        self._f: channel.InputQEMUFile | None = None
        self._cancel_requested = False

    def __enter__(self) -> Self:
        """Listen, where the URI says so; `uri` is then the actual address."""
        self._listener = self._stack.enter_context(channel.listen(self._requested_uri))
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

    def run(self) -> stats.IncomingStatistics:
        """Wait for the source, load all disks, check and flush them, tell the source, and return the statistics.

        Blocks. On any error the source is told, if it listens, and the targets must be taken as incomplete.
        """
        assert self._listener is not None
        if self.stats.status != "none":
            raise errors.StateError("a migration comes in once", state=self.stats.status, required="none")
        self._set_status("setup")
        try:
            self._check_cancelled()
            self._f = f = self._listener.accept(timeout=self.parameters.accept_timeout)
            self._stack.callback(f.abort)
            self._started = self._clock()
            self._set_status("active")
            self._check_cancelled()
            with self._targets:
                self._load(f)
        except BaseException as error:
            cancelled = isinstance(error, errors.Cancelled) or not isinstance(error, Exception)
            with errors.keeping(error):
                self._set_status("cancelled" if cancelled else "failed")
            raise
        self._set_status("completed")
        return self.stats

    def cancel(self) -> None:
        """Stop as soon as possible: `run` raises :class:`~blkmig.errors.Cancelled`. From any thread."""
        self._cancel_requested = True
        if self._listener is not None:
            self._listener.cancel()
        if self._f is not None:
            self._f.cancel()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _load(self, f: channel.InputQEMUFile) -> None:
        """Load the stream and bring it to its end, good or bad."""
        self._block.on_progress = self._report if self._on_progress is not None else None
        loader = savevm.LoadVM(self.savevm, f, observer=self._observer)
        try:
            stream = loader.loadvm()
            self._judge(stream)
            self._check_cancelled()
            self._set_totals(f)
            self._targets.close()  # whoever waits for our word may open the disks the moment it comes
        except BaseException:
            with contextlib.suppress(errors.MigrationError):
                loader.finish(1)
            raise
        loader.finish(0)
        f.close()

    def _judge(self, stream: savevm.LoadedStream) -> None:
        """Check that everything came, make it durable, verify it if asked."""
        section = stream.section("block")
        if section is None:
            raise errors.IncompleteMigration(
                "the stream holds no disks at all: a QEMU sends them only if it is told to, as by migrate -b",
                missing={},
            )
        if not section.ended:
            raise errors.TruncatedStream("the block section has no end: the source gave up", position=stream.nbytes)
        announced = verdict.read_announcement(stream.vmdescription)
        devices = self._open_all(announced, stream.nbytes)
        verdict.settle_sizes(devices, announced, self.parameters, self.stats)
        check = verdict.check_progress if self.parameters.incremental else verdict.check_coverage
        check(devices, announced, self._block.percent_before_section)
        if announced.is_present or not self.parameters.incremental:
            self._targets.check_all_came()
        for device in devices:
            device.backend.flush()
        if self.parameters.verify:
            verdict.verify_digests(devices, announced)

    def _open_all(self, announced: verdict.Announcement, position: int) -> list[block.BlkLoadDevice]:
        """Return the targets of all disks; an incremental stream may hold no block of some."""
        if self.parameters.incremental:
            opened = {device.statistics.name for device in self._targets.devices}
            for name in announced.sizes:
                if name not in opened:
                    self._targets.open(name, position)
        return self._targets.devices

    # -- figures -----------------------------------------------------------------------------------------------------

    def _set_totals(self, f: channel.InputQEMUFile) -> None:
        """Copy the counters to where others read them."""
        self.stats.transferred = f.position
        self.stats.percent = self._block.percent
        self.stats.total_time = self._clock() - self._started

    def _report(self) -> None:
        """Tell the caller how far it is, at most ten times a second."""
        now = self._clock()
        if self._on_progress is None or self._f is None or now - self._last_report < PROGRESS_SECONDS:
            return
        self._last_report = now
        self._set_totals(self._f)
        disks = self.stats.disks.values()
        self._on_progress(
            stats.Received(
                elapsed=now - self._started,
                transferred=self.stats.transferred,
                blocks=sum(disk.blocks for disk in disks),
                zero_blocks=sum(disk.zero_blocks for disk in disks),
                percent=self.stats.percent,
            )
        )

    def _check_cancelled(self) -> None:
        """Raise if somebody has cancelled."""
        if self._cancel_requested:
            raise errors.Cancelled("the migration was cancelled; its targets are incomplete")

    def _set_status(self, status: stats.Status) -> None:
        """Enter a state and tell the caller."""
        self.stats.status = status
        if self._on_progress is not None:
            self._on_progress(stats.StatusChanged(self._clock() - self._started if self._started else 0.0, status))


def incoming(
    uri: str,
    targets: Mapping[str, load_targets.Target] | None = None,
    parameters: params.IncomingParameters | None = None,
    *,
    into: str | os.PathLike[str] | None = None,
    by_index: Mapping[int, load_targets.Target] | None = None,
    on_progress: OnProgress | None = None,
) -> IncomingMigration:
    """Return a migration that comes in on `uri`, to be run in a ``with``; see :class:`IncomingMigration`."""
    return IncomingMigration(uri, targets or {}, parameters, into=into, by_index=by_index, on_progress=on_progress)


def receive(
    uri: str,
    targets: Mapping[str, load_targets.Target] | None = None,
    *,
    into: str | os.PathLike[str] | None = None,
    by_index: Mapping[int, load_targets.Target] | None = None,
    on_progress: OnProgress | None = None,
    **parameters: Any,
) -> stats.IncomingStatistics:
    """Receive the disks of one migration and return the statistics. Blocks until everything is on stable storage.

    `parameters` are those of :class:`~blkmig.IncomingParameters`.
    """
    migration = IncomingMigration(
        uri,
        targets or {},
        params.IncomingParameters(**parameters),
        into=into,
        by_index=by_index,
        on_progress=on_progress,
    )
    with migration:
        return migration.run()
