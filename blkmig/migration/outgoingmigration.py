# SPDX-License-Identifier: GPL-2.0-or-later
"""The outgoing side of a migration: setup, iterate, switchover, complete, cleanup.

Who owns what: the order of things is here, and nothing that changes. The life has the state, the connection has the
channel, the questions have what the target was asked, the figures have the statistics, the rounds send sections, the
convergence has what it takes to decide when they end, the pause has the held writers, and the ending what is sent while
they are.

One thread, the migration thread, calls everything but `cancel` and `switchover`, which any thread and any signal
handler may call; so these two take no lock. They set a flag that only ever goes from False to True, and then wake
whatever the migration thread may be blocked in: the channel, a disk, or the wait between two rounds. A watchdog does
the same when the caller's time-out is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from .. import block, disk, diskmap, errors, params, savevm, stats
from . import (
    abandoning,
    asked,
    beginning,
    bounds,
    completing,
    connection,
    convergence,
    ending,
    endpoints,
    figures,
    life,
    outgoingsession,
    proving,
    questions,
    rounds,
    sentdisks,
)


class OutgoingMigration:
    """One migration of `disks` to `uri`. Use it in a ``with``: entering sets it up, leaving cleans up.

    `savevm` is its registry: other live sections may be registered there before it is entered. An error, or leaving
    the ``with`` before `complete`, ends the migration: the disks stay as they are, in use by their writers.
    """

    def __init__(
        self,
        disks: Iterable[disk.BlockBackend],
        uri: str,
        parameters: params.MigrationParameters | None = None,
        *,
        on_progress: figures.OnProgress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Set here, then read-only.
        self.parameters = asked.parameters_of(parameters, params.MigrationParameters)
        self.uri = uri
        self.savevm = savevm.SaveState(
            savevm.ContainerFormat.for_machine_compat(self.parameters.machine_compat, machine=self.parameters.machine)
        )
        disks = asked.backends_of(disks)
        self._sources = endpoints.Sources(uri, disks)
        self._block = block.BlockSaveHandlers(disks, self.parameters, clock=clock)
        self._block.disks.is_described = self.savevm.format.vmdescription
        self.savevm.register_savevm_live("block", 0, 1, self._block)
        self._connection = connection.Connection(
            uri,
            self._block,
            is_qemu=True if self.parameters.qemu or self.parameters.machine else None,
            tls=self.parameters.tls,
        )
        self._questions = questions.Questions(self._connection, self._block)
        self._figures = figures.Figures(
            self._block, self.savevm, self._connection, on_progress=asked.listener(on_progress), clock=clock
        )
        self.stats = self._figures.stats
        self.stats.downtime_limit = self.parameters.downtime_limit
        self._session = outgoingsession.OutgoingSession(
            self.parameters,
            self._block,
            self.savevm,
            self._connection,
            self._questions,
            self._figures,
            clock=clock,
        )
        self._maps: dict[str, diskmap.DiskMap] | None = None
        self.when_limit_reached: Callable[[], object] = lambda: None
        """Called, in a thread of the watchdog, when a limit has ended the migration as `cancel` does."""
        self._convergence = convergence.Convergence(self.parameters, self._block, self._figures, self._questions.look)
        self._bounds = bounds.Bounds(self.parameters, self._convergence, self.cancel, lambda: self.when_limit_reached())
        self._life = life.Life(
            self._figures,
            (
                self._bounds.close,
                self._convergence.release_throttle,
                self._figures.count_disks,
                self.savevm.state_cleanup,
                self._connection.abort,
                self._session.close,
                self._sources.close,
                lambda: self._ending.close(),
            ),
        )
        self._rounds = rounds.Rounds(
            self._block,
            self.savevm,
            self._connection,
            self._questions,
            self._figures,
            self._convergence,
            self._bounds,
            self._life,
            self._session,
        )
        self._ending = ending.Ending(
            self.parameters,
            self._block,
            self.savevm,
            self._connection,
            self._questions,
            self._figures,
            self._sources,
            self._session,
            self._rounds.send_section,
        )
        self._rounds.before_more = self._ending.note.withdraw
        self._proving = proving.Proving(
            self._block, self.savevm, self._connection, self._questions, self._figures, self._rounds
        )
        self._completing = completing.Completing(
            self.parameters,
            self._block,
            self._connection,
            self._figures,
            self._convergence,
            self._bounds,
            self._ending,
            self._proving,
            self._life,
            self._session,
            clock=clock,
        )
        self.abandon = abandoning.Abandoning(
            self._block, self._life, self._bounds, self._ending, self._session, self._sources
        ).abandon

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def status(self) -> stats.Status:
        """Return the state of the migration, in QEMU's words."""
        return self._life.status

    @property
    def skipped(self) -> list[str]:
        """Return the names of the disks that are not sent because they are read-only or have no bytes."""
        return self._block.disks.skipped

    def keep_maps(self) -> dict[str, diskmap.DiskMap]:
        """Return where the maps of the disks will be, by name, from setup on; call it before that."""
        self._life.require("none")
        self._maps = {} if self._maps is None else self._maps
        return self._maps

    def __enter__(self) -> Self:
        """Connect, take the disks into use, start dirty tracking: QEMU's setup."""
        with self._life.driving("none"):
            self._figures.start()
            try:
                self._figures.enter("setup")
                with self._bounds.saying_why():
                    self._setup()
                self.stats.setup_time = self._figures.elapsed()
                self._figures.enter("active")
            except BaseException as error:
                self._life.end(error)
                raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Clean up; a migration that was not completed is cancelled (or failed, after an error).

        A call that another thread makes meanwhile is cancelled, and waited for.
        """
        self._life.end_others(self.cancel)
        if self._life.is_over:
            return
        error = exc or errors.Cancelled("the migration was left before it was complete")
        self._life.end(error)
        if exc is None and hasattr(error, "__notes__"):
            raise error  # nobody else would say that the clean-up failed

    def run(self) -> None:
        """Migrate until everything is at the target: iterate while more is pending than the downtime limit allows, and
        below it for as long as each round is clearly shorter and leaves clearly less (see `convergence.Descent`).

        Raises :class:`~blkmig.errors.NotConverged` when `max_rounds` or `timeout` are over before that, or several
        pauses had to be given up.
        """
        with self._life.driving("active"):
            self._figures.forget_fetch()  # nobody knows how long ago the caller iterated
            while True:
                self._rounds.until_ready()
                if self._prove_and_flush_ahead():
                    self._rounds.fetch_anew()
                self._rounds.until_ready()
                self._rounds.shorten_the_pause()
                if self._completing.attempt():
                    return
                self._convergence.check_pauses()
                self._rounds.finish_this_one()

    def iterate(self) -> None:
        """Send one section, of about 100 ms. Blocks for the channel, the disks and the rate limit."""
        with self._life.driving("active"):
            self._rounds.iterate()

    def pending(self) -> int:
        """Return the bytes that the last pass would have to send if it began now."""
        return self._figures.pending()

    def threshold_size(self) -> int:
        """Return the bytes that the last pass may have: what the link carries within the downtime limit.

        0 in the bulk phase.
        """
        return self._convergence.threshold_size()

    def switchover(self) -> None:
        """Begin the last pass at the next opportunity, whatever is pending. From any thread, or a signal handler."""
        self._convergence.switchover()

    def complete(self) -> None:
        """Hold the writers, send what is left, end the stream, and wait for the target's word if there is one.

        On success the writers are released or refused, as `writers_after` says. The downtime runs from hold to release;
        where the disk moves (``refuse``), to the target's word that it has everything. On failure they go on, but for
        :class:`~blkmig.errors.InDoubt`: then they stay held until somebody calls `release_writers` of their disks. What
        verifying finds behind the target's word takes no move back: the error, or a note of it, says that it has moved.

        A pause that takes longer than `downtime_bound` is given up: the writers go on, and this raises
        :class:`~blkmig.errors.NotConverged`. Then the migration is still active, and may be completed later.
        """
        with self._life.driving("active"):
            is_complete = self._completing.attempt()
        if not is_complete:
            raise self._convergence.not_converged("in the pause")

    def cancel(self) -> None:
        """End the migration as soon as possible: whatever it does next raises :class:`~blkmig.errors.Cancelled`.

        From any thread, or a signal handler. Without effect once the migration is completed or has failed.
        """
        if self._life.is_over:
            return  # its disks are others' by now
        self._connection.cancel()
        self._block.cancel()
        self._convergence.wake()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _prove_and_flush_ahead(self) -> bool:
        """Return whether the target has flushed, which has taken its time."""
        with self._bounds.saying_why():
            try:
                self._proving.until_compared()
                return self._ending.flush_ahead()
            except errors.ChannelError as error:
                self._session.go_on(error)
                return False

    def _setup(self) -> None:
        """Connect and write everything before the first part."""
        self._bounds.begin()
        self._ending.look_for_notes()
        beginning.begin(
            self.parameters,
            self._block,
            self.savevm,
            self._connection,
            self._questions,
            self._sources,
            self.stats,
            self._session,
            connect_timeout=self._bounds.connect_timeout,
        )
        self._ending.begin_note()
        self.stats.disk_bytes = sum(bmds.backend.size for bmds in self._block.blk_mig.bmds_list)
        self._figures.begin_round(self._block.blk_mig.bytes_total())  # of whole sectors, as what is dirty
        self._session.spread()
        if self._maps is not None:
            sentdisks.keep_maps(self._maps, self._block.blk_mig)
