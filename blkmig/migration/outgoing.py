# SPDX-License-Identifier: GPL-2.0-or-later
"""The outgoing side of a migration: setup, iterate, switchover, complete, cleanup.

::

    none ─ setup ─► active ─ complete ─► device ──► completed
                      │  ▲      (writers held)
                      └──┘ iterate
             any of them ─► failed, or cancelling ─► cancelled

Who owns what: one thread, the migration thread, calls everything but `cancel` and `switchover`, which any thread and
any signal handler may call; so these two take no lock. They set a flag that only ever goes from False to True, and
then wake whatever the migration thread may be blocked in: the channel, a read, or the wait between two rounds.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from .. import _core, block, channel, disk, errors, params, savevm, stats
from . import convergence

OnProgress = Callable[[stats.Event], None]
PROGRESS_SECONDS = 0.1
VMDESCRIPTION_VERSION = 1
QEMU_HINT = (
    "look at the target's messages; a QEMU that goes away has no drive of that id, one that no device uses, a smaller "
    "or a read-only image, another machine type, or is older than 2.5 and knows no return path (--no-return-path)"
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
        on_progress: OnProgress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Set here, then read-only.
        self.parameters = parameters or params.MigrationParameters()
        self.uri = uri
        self._connector = channel.Connector(uri)
        self.savevm = savevm.SaveState(
            savevm.ContainerFormat.for_machine_compat(self.parameters.machine_compat, machine=self.parameters.machine)
        )
        self._disks = list(disks)
        self._block = block.BlockSaveHandlers(self._disks, self.parameters, clock=clock)
        self.savevm.register_savevm_live("block", 0, 1, self._block)
        self._on_progress = on_progress
        self._clock = clock
        # Migration thread only.
        self.stats = stats.OutgoingStatistics()
        self._started = 0.0
        self._last_report = 0.0
        self._f: channel.OutputQEMUFile | None = None
        self._return_path: channel.InputQEMUFile | None = None
        self._meter = convergence.BandwidthMeter()
        self._rounds = convergence.Rounds(self.stats)
        self._descent = convergence.Descent()
        self._fetched_at: float | None = None  # when the round began, while nothing of it is sent
        self._auto_converge: convergence.AutoConverge | None = None
        # Any thread may set these, nobody clears them.
        self._cancel_requested = False
        self._switchover_requested = False
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def status(self) -> stats.Status:
        """Return the state of the migration, in QEMU's words."""
        return self.stats.status

    @property
    def skipped(self) -> list[str]:
        """Return the names of the disks that are not sent because they are read-only or have no bytes."""
        return self._block.skipped

    def __enter__(self) -> Self:
        """Connect, take the disks into use, start dirty tracking: QEMU's setup."""
        self._require("none")
        self._started = self._clock()
        try:
            self._set_status("setup")
            self._setup()
            self.stats.setup_time = self._elapsed()
            self._set_status("active")
        except BaseException as error:
            self._end(error)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Clean up; a migration that was not completed is cancelled (or failed, after an error)."""
        if self.status in ("completed", "failed", "cancelled"):
            return
        error = exc or errors.Cancelled("the migration was left before it was complete")
        self._end(error)
        if exc is None and hasattr(error, "__notes__"):
            raise error  # nobody else would say that the clean-up failed

    def run(self) -> None:
        """Migrate until everything is at the target: iterate while more is pending than the downtime limit allows, and
        below it for as long as each round still leaves clearly less to the pause (see `convergence.Descent`).

        Raises :class:`~blkmig.errors.NotConverged` when `max_rounds` or `timeout` are over before that.
        """
        self._fetched_at = None  # who knows how long ago the caller iterated
        self._iterate_until_ready()
        if not self._switchover_requested and 0 < self.pending() <= self.threshold_size() // 2:
            self._send_the_round()
            if self.pending() > self.threshold_size():
                self._iterate_until_ready()
        self.complete()

    def _iterate_until_ready(self) -> None:
        while not self._ready():
            self.iterate()

    def _send_the_round(self) -> None:
        """Send what this round has, and do not ask what the next one would have: that is for the pause to know.

        The pause would send this round, too, and what is dirtied while it is fetched. Now it is the latter only, and as
        rounds do not get shorter any more, that is as much as this round has: at most half of the limit.
        """
        self._block.blk_mig.is_last_round = True
        while not self._block.is_round_over():
            self.iterate()
        self._block.blk_mig.is_last_round = False

    def iterate(self) -> None:
        """Send one section, of about 100 ms. Blocks for the channel, the disks and the rate limit."""
        self._require("active")
        f, round_number = self._file(), self._block.blk_mig.round_number
        transferred, blocks, started = f.transferred, self._block.blk_mig.transferred, self._clock()
        f.wait_rate_limit()
        with self._explaining_link_errors():
            self.savevm.state_iterate(f)
        self._check_cancelled()
        seconds, has_round_ended = self._clock() - started, self._block.blk_mig.round_number != round_number
        self._fetched_at = None
        if has_round_ended:
            seconds -= self._block.blk_mig.fetch_seconds
            self._fetched_at = self._clock()
        blocks = self._block.blk_mig.transferred - blocks
        # In the bulk phase holes are as many blocks as one likes, so only wire bytes count there.
        nbytes = blocks * _core.BLOCK_SIZE if round_number else f.transferred - transferred
        self._meter.add(nbytes, seconds)
        self._update_statistics()
        if has_round_ended:
            self._round_ended()
        self._report()

    def pending(self) -> int:
        """Return the bytes that the last pass would have to send if it began now."""
        return self.savevm.state_pending()

    def threshold_size(self) -> int:
        """Return the bytes that the last pass may have: what the link carries within the downtime limit.

        The time that it takes to learn what is dirty counts, too, but not for more than half of the limit: a limit that
        cannot be kept must not keep the migration from its end. 0 in the bulk phase: sending it with the writers held
        would only make the pause longer.
        """
        if not self._block.blk_mig.bulk_completed:
            return 0
        limit = self.parameters.downtime_limit
        return int(self._meter.bandwidth * max(limit - self._block.blk_mig.fetch_seconds, limit / 2))

    def switchover(self) -> None:
        """Begin the last pass at the next opportunity, whatever is pending. From any thread, or a signal handler."""
        self._switchover_requested = True
        self._wakeups.put(None)

    def complete(self) -> None:
        """Hold the writers, send what is left, end the stream, and wait for the target's word if there is one.

        On success the writers are released or refused, as `writers_after` says; on failure they go on. The downtime
        runs from hold to release; where the disk moves (``refuse``), to the target's word that it has everything.
        """
        self._require("active")
        self._set_status("device")
        self._release_throttle()
        held_at, held = self._clock(), contextlib.ExitStack()
        try:
            for backend in self._sent_disks():
                held.callback(backend.release_writers)
                backend.hold_writers()
            self._last_pass()
            if self.parameters.writers_after == "release":
                held.close()
                self.stats.downtime = self._clock() - held_at
            self._report(at_once=True)
            self._await_target()
            if self.parameters.writers_after == "refuse":
                for backend in self._sent_disks():
                    backend.release_writers(refuse=True)
                held.pop_all()
                self.stats.downtime = self._clock() - held_at
        except BaseException as error:
            with errors.keeping(error):
                held.close()
            raise
        self._end(None)

    def cancel(self) -> None:
        """End the migration as soon as possible: whatever it does next raises :class:`~blkmig.errors.Cancelled`.

        From any thread, or a signal handler. Without effect once the migration is completed or has failed.
        """
        self._cancel_requested = True
        self._connector.cancel()  # the stream and the return path, too
        self._wakeups.put(None)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _setup(self) -> None:
        """Connect and write everything before the first part."""
        self._block.check_disks()  # first: a QEMU at the other end takes a connection that ends for a failed migration
        self._f = f = self._connector.connect(timeout=self.parameters.connect_timeout)
        f.set_rate_limit(int(self.parameters.max_bandwidth))
        self.savevm.state_header(f)
        if self.parameters.return_path:
            self._return_path = f.return_path()
            if self._return_path is not None:
                self.savevm.send_open_return_path(f)
        self.savevm.state_setup(f)
        self.stats.disk_bytes = self._block.blk_mig.bytes_total()
        self._begin_round(self.stats.disk_bytes)
        if self.parameters.auto_converge:
            self._auto_converge = convergence.AutoConverge(self._sent_disks())

    def _ready(self) -> bool:
        """Return whether it is time for the last pass; wait a little if there is nothing to do before it."""
        self._check_cancelled()
        pending = self.pending()
        if self._switchover_requested:
            return True
        if pending > self.threshold_size():
            self._check_limits(pending)
            return False
        if self.parameters.switchover == "auto":
            return self._is_time_for_the_pause()
        if pending == 0:
            with contextlib.suppress(queue.Empty):
                self._wakeups.get(timeout=convergence.WINDOW_SECONDS)
        return False

    def _is_time_for_the_pause(self) -> bool:
        """Return whether what is pending now fits the downtime limit, and one more round would not make it less."""
        if self._fetched_at is None or self._clock() - self._fetched_at > convergence.FRESH_SECONDS:
            for backend in self._sent_disks():
                backend.sync_dirty()  # towards its end, a round knows only what was dirty when it began
        pending, rounds = self.pending(), self._block.blk_mig.round_number
        if pending > self.threshold_size():
            return False
        has_time = convergence.has_time(self.parameters, elapsed=self._elapsed(), rounds=rounds)
        return self._descent.has_ended(pending) or not has_time

    def _check_limits(self, pending: int) -> None:
        """Give up if the caller's limits are reached."""
        rounds = self._block.blk_mig.round_number
        convergence.check_limits(self.parameters, self.stats, elapsed=self._elapsed(), pending=pending, rounds=rounds)

    def _last_pass(self) -> None:
        """Send what is left and end the stream."""
        f = self._file()
        f.set_rate_limit(0)
        self._close_round()
        self._begin_round(self.pending())
        with self._explaining_link_errors():
            self.savevm.state_complete_precopy(f)
            self.savevm.state_end(f, self._vmdescription())
        self._check_cancelled()
        self._update_statistics()
        self._close_round()

    def _await_target(self) -> None:
        """Close the stream; on a two-way channel, wait for the target's word first."""
        f = self._file()
        if self._return_path is not None:
            try:
                with self._explaining_link_errors():
                    status = savevm.await_shut(self._return_path)
            except errors.TruncatedStream as error:
                raise errors.ChannelError(
                    "waiting for the target's word that it has everything",
                    uri=self.uri,
                    cause="it closed the link",
                    hint=QEMU_HINT,
                ) from error
            if status:
                raise errors.MigrationError(
                    f"the target received everything, but failed to finish (status {status}); look at its messages"
                )
        f.close()

    @contextlib.contextmanager
    def _explaining_link_errors(self) -> Iterator[None]:
        """Say of a link that breaks which block was on its way, and what that usually means."""
        try:
            yield
        except errors.ChannelTimeout:
            raise
        except errors.ChannelError as error:
            sent = self._block.blk_mig.last_sent
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else "the link broke"
            raise errors.ChannelError(
                error.doing,
                uri=error.uri,
                cause=cause,
                device=sent and sent[0].label,
                offset=sent and sent[0].geometry.block_range(sent[1])[0],
                hint=QEMU_HINT,
            ) from error

    def _vmdescription(self) -> dict[str, Any]:
        """Return what a reader of the stream should know; QEMU reads and ignores it."""
        about = {
            "version": VMDESCRIPTION_VERSION,
            "incremental": self.parameters.shared_base,
            "disks": self._block.disk_descriptions(),
        }
        return {"page_size": 4096, "devices": [], "blkmig": about}

    def _end(self, error: BaseException | None) -> None:
        """Release everything and say how it ended; `error` is what ended it, and stays the error. None: success."""
        if error is None:
            self._clean_up()
            self._finish("completed")
            return
        cancelled = isinstance(error, errors.Cancelled) or not isinstance(error, Exception)
        try:
            with errors.keeping(error):
                self._clean_up("cancelling" if cancelled else None)
        finally:
            with errors.keeping(error):
                self._finish("cancelled" if cancelled else "failed")

    def _clean_up(self, status: stats.Status | None = None) -> None:
        """Enter `status` and release everything, whatever fails on the way."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._abort_channel)
            stack.callback(self.savevm.state_cleanup)
            stack.callback(self._release_throttle)
            if status is not None:
                self._set_status(status)

    def _finish(self, status: stats.Status) -> None:
        """Enter the last state."""
        self.stats.total_time = self._elapsed()
        self._set_status(status)

    def _release_throttle(self) -> None:
        """Give the writers their speed back, if it was taken."""
        if self._auto_converge is not None:
            self._auto_converge.release()

    def _abort_channel(self) -> None:
        """Close the channel as it is; after success there is nothing left to close."""
        for f in (self._return_path, self._f):
            if f is not None:
                f.abort()
        self._return_path = self._f = None

    # -- figures -----------------------------------------------------------------------------------------------------

    def _begin_round(self, dirty_bytes: int) -> None:
        """Open a round in the statistics."""
        self._rounds.begin(
            len(self.stats.rounds) and self.stats.rounds[-1].number + 1,
            dirty_bytes,
            now=self._clock(),
            transferred=self._file().transferred,
            blocks=self._block.blk_mig.transferred,
        )

    def _close_round(self) -> stats.RoundStatistics:
        """Close the round that is under way."""
        blk_mig = self._block.blk_mig
        return self._rounds.end(
            (blk_mig.count_dirty_blocks() + blk_mig.submitted + blk_mig.read_done) * _core.BLOCK_SIZE,
            now=self._clock(),
            transferred=self._file().transferred,
            blocks=blk_mig.transferred,
        )

    def _round_ended(self) -> None:
        """Close the round in the statistics, tell the caller, and begin the next one."""
        ended = self._close_round()
        if self._auto_converge is not None:
            self._auto_converge.round_ended(ended)
        self._notify(stats.RoundEnded(self._elapsed(), ended, self.pending(), self.threshold_size()))
        self._begin_round(self._block.blk_mig.round_dirty_blocks * _core.BLOCK_SIZE)

    def _update_statistics(self) -> None:
        """Copy the counters to where others read them."""
        blk_mig = self._block.blk_mig
        self.stats.transferred = self._file().transferred
        self.stats.blocks = blk_mig.transferred
        self.stats.zero_blocks = blk_mig.zero_transferred
        self.stats.bandwidth = self._meter.estimate()
        self.stats.total_time = self._elapsed()
        if self.stats.bandwidth:
            self.stats.expected_downtime = self.pending() / self.stats.bandwidth

    def _report(self, *, at_once: bool = False) -> None:
        """Tell the caller how far it is: at once, or at most ten times a second."""
        now = self._clock()
        if self._on_progress is None or (now - self._last_report < PROGRESS_SECONDS and not at_once):
            return
        self._last_report = now
        blk_mig = self._block.blk_mig
        total = blk_mig.bytes_total()
        self._notify(
            stats.Progressed(
                elapsed=self._elapsed(),
                phase="switchover" if self.status == "device" else "dirty" if blk_mig.bulk_completed else "bulk",
                percent=100.0 * blk_mig.bytes_transferred() / total if total else 100.0,
                transferred=self.stats.transferred,
                remaining=self.pending(),
                total=total,
                bandwidth=self.stats.bandwidth,
                dirty_rate=self.stats.dirty_rate,
                expected_downtime=self.stats.expected_downtime,
                round_number=blk_mig.round_number,
            )
        )

    def _notify(self, event: stats.Event) -> None:
        """Call the caller's callback."""
        if self._on_progress is not None:
            self._on_progress(event)

    # -- small things ------------------------------------------------------------------------------------------------

    def _sent_disks(self) -> list[disk.BlockBackend]:
        """Return the disks that are sent."""
        return [bmds.backend for bmds in self._block.blk_mig.bmds_list]

    def _file(self) -> channel.OutputQEMUFile:
        """Return the channel of an active migration."""
        assert self._f is not None
        return self._f

    def _elapsed(self) -> float:
        """Return the seconds since the migration began."""
        return self._clock() - self._started

    def _check_cancelled(self) -> None:
        """Raise if somebody has cancelled."""
        if self._cancel_requested:
            raise errors.Cancelled("the migration was cancelled")

    def _set_status(self, status: stats.Status) -> None:
        """Enter a state and tell the caller."""
        self.stats.status = status
        self._notify(stats.StatusChanged(self._elapsed(), status))

    def _require(self, status: stats.Status) -> None:
        """Raise unless the migration is in the state that a call needs."""
        if self.status != status:
            raise errors.StateError("the call is not possible now", state=self.status, required=status)


def outgoing(
    disks: Iterable[disk.BlockBackend],
    uri: str,
    parameters: params.MigrationParameters | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> OutgoingMigration:
    """Return a migration of `disks` to `uri`, driven step by step in a ``with``; see :class:`OutgoingMigration`."""
    return OutgoingMigration(disks, uri, parameters, on_progress=on_progress)


def send(
    disks: Iterable[disk.BlockBackend | str | os.PathLike[str]],
    uri: str,
    *,
    on_progress: OnProgress | None = None,
    **parameters: Any,
) -> stats.OutgoingStatistics:
    """Migrate `disks` to `uri` and return the statistics. Blocks until it is done or has failed.

    A disk may be a path: it is opened for the length of the call. `parameters` are those of
    :class:`~blkmig.MigrationParameters`.
    """
    with contextlib.ExitStack() as opened:
        backends: list[disk.BlockBackend] = []
        for source in disks:
            if isinstance(source, disk.BlockBackend):
                backends.append(source)
            else:
                backends.extend(map(opened.enter_context, disk.open_disks(source, writable=False)))
        migration = OutgoingMigration(backends, uri, params.MigrationParameters(**parameters), on_progress=on_progress)
        with migration:
            migration.run()
        return migration.stats
