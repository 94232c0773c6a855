# SPDX-License-Identifier: GPL-2.0-or-later
"""One connection to a running QEMU and everything that its disks share: tracking, holding, throttling, cleaning up.

::

    QemuBackend ─┐                     ┌─ QmpConnection    commands and events
    QemuBackend ─┼─► QemuSession ──────┼─ OwnObjects       what was created inside QEMU
    QemuBackend ─┘   (one lock)        ├─ Tracking, Throttles   one for each disk
                                       ├─ DirtySync        fetches what was written to all of them
                                       ├─ Holding, Writers   stop the guest, close the writable exports
                                       ├─ Guest, Surveillance   what happens to the VM meanwhile
                                       └─ Marks            what a clean-up must know if blkmig is killed
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .. import errors, threads, units
from ..disk import dirty
from . import (
    address,
    discover,
    graph,
    guest,
    holding,
    imagefile,
    leftovers,
    marks,
    objects,
    preswitchover,
    qmp,
    readers,
    surveillance,
    syncing,
    throttling,
    tracking,
    undoing,
    watch,
    writers,
)
from .holding import PauseMode as PauseMode


class QemuSession:
    """A running QEMU, with one read-only export for each disk that is to be sent.

    :func:`~blkmig.qemu.open_qemu` makes it. Any thread may call anything; calls that talk to QEMU run one after the
    other. `force` allows disks in iothreads even if that is dangerous. With `switchover` ``"pause-before"`` QEMU's own
    migration holds the writers, and `hold_writers` waits `switchover_timeout` seconds for it; without `return_path`
    that migration does not wait for its target. QEMU has `connect_timeout` seconds for its greeting, and `timeout` for
    each command. The monitor serves one client at a time: other commands can be run through `qmp`.
    """

    def __init__(
        self,
        where: address.QemuAddress,
        *,
        force: bool = False,
        switchover: PauseMode = "auto",
        switchover_timeout: float = 3600.0,
        return_path: bool = True,
        connect_timeout: float = 5.0,
        timeout: float = 60.0,
    ) -> None:
        units.check_flags(force=force, return_path=return_path)
        self._lock = threading.RLock()
        self._open: set[int] = set()
        self.is_whole_vm = switchover == "pause-before"
        self.qmp = qmp.QmpConnection(where.path, connect_timeout=connect_timeout, timeout=timeout)
        self.own = objects.OwnObjects(self.qmp)
        self._marks = marks.Marks(self.qmp, self.own.prefix)
        self._readers: readers.Readers | None = None
        self._writers: writers.Writers | None = None
        self._surveillance: surveillance.Surveillance | None = None
        try:
            self._set_up(where, force, switchover, {"wait": switchover_timeout, "return_path": return_path})
        except BaseException as error:
            if not isinstance(error, Exception):
                self.qmp.cancel()  # after an interruption, the clean-up must not take long
            self._shut_down()
            raise

    def _set_up(self, where: address.QemuAddress, force: bool, switchover: PauseMode, whole_vm: dict[str, Any]) -> None:
        self._commands = discover.check_version(self.qmp)
        is_vm = "query-status" in self._commands
        if switchover == "pause-before" and not is_vm:
            cause = "only a VM migrates as a whole; this is a storage daemon"
            raise errors.DeviceError("cannot pause before the switchover", device=self.qmp.device, cause=cause)
        leftovers.refuse_unfinished(self.qmp, leftovers.remove(self.qmp), is_vm=is_vm)
        self._guest = guest.Guest(self.qmp, is_vm=is_vm)
        facts = graph.BlockGraph.ask(self.qmp, self._commands)()
        self.disks = discover.find_disks(self.qmp, facts, where)
        self.image_names = [imagefile.absolute_names(where.path, facts.image_names(disk.node)) for disk in self.disks]
        discover.check_iothreads(self.qmp, facts, self.disks, force=force)
        self._readers = through = readers.Readers(self.own, self.disks)
        through.open_files(where, facts)
        self._watch = watch.GraphWatch(self.qmp, self._commands, self.disks, through.names, through.files)
        through.connect(where.nbd)
        self._tracking = [
            # QEMU's own migration may send bitmaps, and it refuses those that are exported.
            tracking.Tracking(self.own, disk, number, through.extents[number], keeps_open=switchover == "auto")
            for number, disk in enumerate(self.disks)
        ]
        self._throttles = throttling.Throttles(self.qmp, self.own, self.disks, facts)
        self._sync = syncing.DirtySync(self.qmp, self.own, self._watch, self._tracking, self._throttles.each)
        kind = preswitchover.PreSwitchover if self.is_whole_vm else writers.Writers
        options: dict[str, Any] = {"drop": self._drop, **whole_vm} if self.is_whole_vm else {}
        self._writers = kind(
            self.qmp,
            self.own,
            self.disks,
            read_graph=self._watch.read,
            named=where.exports,
            guest=self._guest,
            marks=self._marks,
            **options,
        )
        self._holding = holding.Holding(self.qmp, self._writers, self._sync, self._watch, self._throttles)
        self._writers.prepare()
        self._watch.remember()
        self._open = set(range(len(self.disks)))
        self._surveillance = surveillance.Surveillance(self._ask_unless_busy, self._watch.check)

    @property
    def readers(self) -> readers.Readers:
        """The readers of the disks."""
        assert self._readers is not None, "a session that is set up"
        return self._readers

    def _locked(self) -> threading.RLock:
        """Return the lock. Raises :class:`~blkmig.errors.DeviceError` in a forked child, where nobody would free it."""
        self.qmp.check_home("cannot be used")
        return self._lock

    # -- dirty tracking ----------------------------------------------------------------------------------------------

    def create_dirty_bitmap(self, number: int, granularity: int) -> dirty.DirtyBitmap:
        """Track the writes of a disk in one more bitmap. The first bitmap starts the tracking in QEMU."""
        with self._locked():
            if not any(other.active for other in self._tracking):
                self._renew()
            mine = self._tracking[number]
            bitmap = dirty.DirtyBitmap(mine.disk.size, granularity)
            if not mine.active:
                mine.granularity = min(granularity, tracking.GRANULARITY)
                tracking.start_adding(self.own, [mine])()
                self._throttles.each[number].start()
            self.readers.extents[number].forget()
            mine.trackers = (*mine.trackers, bitmap)
            return bitmap

    def _renew(self) -> None:
        """Make the session usable again after a cancel."""
        self.qmp.renew()
        self.own.renew()
        self.readers.renew()

    def release_dirty_bitmap(self, number: int, bitmap: dirty.DirtyBitmap) -> None:
        """Stop tracking in `bitmap`. The last bitmap ends the tracking in QEMU."""
        if self.qmp.is_foreign:
            return
        with self._lock, self.qmp.leaving():
            mine = self._tracking[number]
            mine.trackers = tuple(tracker for tracker in mine.trackers if tracker is not bitmap)
            if not mine.trackers:
                undoing.attempt(self.qmp, mine.remove_all, f"stop the tracking of {mine.disk.name}")

    def sync_dirty(self, numbers: Sequence[int]) -> None:
        """Fetch what was written to some disks. With the writers held, fetch it for all disks, and only once."""
        with self._locked():
            self._holding.sync(numbers)

    # -- writers -----------------------------------------------------------------------------------------------------

    def hold_writers(self, number: int) -> None:
        """Hold the writers of all disks at the first call; further calls change nothing."""
        with self._locked():
            self._holding.hold(number)

    def release_writers(self, number: int, *, refuse: bool) -> None:
        """Release the writers of all disks at the last call, or keep them held if one call said `refuse`."""
        if self.qmp.is_foreign:
            return
        with self._lock:
            self._holding.release(number, refuse=refuse)

    def about_to_move(self) -> bool:
        """Have `hold_writers` mark that the target may own the disks; False if it can use them only after a release."""
        with self._locked():
            return self._holding.about_to_move()

    def leave_in_doubt(self, number: int) -> None:
        """Leave the writers of all disks held for good, with the marks that tell `cleanup` why."""
        if self.qmp.is_foreign:
            return
        with self._lock:
            self._holding.leave_in_doubt(number)

    def written_bytes(self, number: int) -> int | None:
        """Return how many bytes the writers of a disk have written; only differences of two calls mean anything."""
        with self._locked():
            return self._throttles.each[number].written_bytes()

    @property
    def _the_writers(self) -> writers.Writers:
        assert self._writers is not None, "a session that is set up"
        return self._writers

    def migrate(self, uri: str) -> None:
        """Start QEMU's own migration, of RAM and devices, to its `uri` (``pause-before`` only).

        Anybody with a monitor of this QEMU may do it instead. Closing the disks before they have moved cancels it.
        """
        self._vm_migration().migrate(uri)

    def when_pre_switchover(self, call: Callable[[], None]) -> None:
        """Call `call`, in a thread of its own, as soon as QEMU's own migration waits for the last pass.

        For ``pause-before`` only, once: ``session.when_pre_switchover(migration.switchover)``. If QEMU's migration does
        not get there before the disks are closed, `call` is not called.
        """
        self.qmp.check_home("cannot be sent")
        watch = self._vm_migration().watch
        threads.Thread(target=watch, args=(call,), name="blkmig-switchover", daemon=True).start()

    def _vm_migration(self) -> preswitchover.PreSwitchover:
        if not isinstance(self._writers, preswitchover.PreSwitchover):
            raise errors.StateError("the VM does not migrate as a whole", state="auto", required="pause-before")
        return self._writers

    def throttle_writers(self, number: int, fraction: float) -> bool:
        """Slow a disk's writers down to `fraction` of their speed; return False if this disk's cannot be slowed."""
        with self._locked():
            return self._throttles.each[number].set(fraction)

    # -- what may happen meanwhile -----------------------------------------------------------------------------------

    def check_source(self) -> None:
        """Raise what has happened to QEMU, the guest or a disk, as far as it is known. Asks nobody, takes no lock."""
        self.qmp.check_home("cannot be sent")
        self._guest.check(self.disks)
        self._the_writers.check()
        if self._surveillance is not None and self._surveillance.error is not None:
            raise self._surveillance.error

    def _ask_unless_busy(self) -> Callable[..., graph.BlockGraph] | None:
        """Ask for the graph, for the surveillance; None if the writers are held: a command would prolong the pause."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return None if self._holding.is_held or not self._open else self._watch.ask()
        finally:
            self._lock.release()

    def cancel(self) -> None:
        """End every wait for QEMU. From any thread and any signal handler; takes no lock."""
        self.qmp.cancel()
        self.own.cancel()

    # -- the end -----------------------------------------------------------------------------------------------------

    def close_disk(self, number: int) -> None:
        """Remove what belongs to a disk; the last disk ends the session. What is gone already is no error; safe
        twice."""
        if self.qmp.is_foreign:
            return
        with self._lock:
            if number not in self._open:
                return
            self._open.discard(number)
            if not self._open:
                self._shut_down()

    def _shut_down(self) -> None:
        """Release the writers, lift throttles, remove everything that blkmig has made in QEMU, disconnect."""
        if self._surveillance is not None:
            self._surveillance.close()
        with self.qmp.leaving(), contextlib.ExitStack() as stack:
            stack.callback(self.qmp.close)
            stack.callback(undoing.tell_of_silence, self.qmp, self.own, lambda: marks.HELD in self._marks)
            stack.callback(self._drop)
            remove_marks = self._marks.remove_all if self._writers is None else self._writers.remove_marks
            stack.callback(undoing.attempt, self.qmp, remove_marks, "remove the marks")
            if self._writers is not None:
                for limit in self._throttles.each:
                    stack.callback(undoing.attempt, self.qmp, limit.lift, "lift the throttle")
                stack.callback(undoing.attempt, self.qmp, self._writers.close, "undo the preparations")
                stack.callback(undoing.attempt, self.qmp, self._holding.let_go, "release the writers")

    def _drop(self) -> None:
        """Remove blkmig's exports, bitmaps and NBD server. The server closes connections first, then blkmig does."""
        self.own.remove_all()
        for mine in getattr(self, "_tracking", ()):
            mine.disconnect()
        if self._readers is not None:
            self._readers.close()
