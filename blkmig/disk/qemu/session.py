# SPDX-License-Identifier: GPL-2.0-or-later
"""One connection to a running QEMU and everything that its disks share: tracking, holding, throttling, cleaning up.

::

    QemuBackend ─┐                     ┌─ QmpConnection    commands and events
    QemuBackend ─┼─► QemuSession ──────┼─ OwnObjects       what was created inside QEMU
    QemuBackend ─┘   (one lock)        ├─ Tracking, Throttle   one of each per disk
                                       ├─ DirtySync        fetches what was written, of all of them
                                       └─ Writers          stop, or close the writable exports

The disks are one in all that concerns their writers: the first one that holds them holds those of all, and the last one
that releases them, or is closed, lets all of them go.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Literal

from ... import errors
from .. import dirty, extents, nbd_connection
from . import address, discover, graph, imagefile, leftovers, objects, qmp, syncing, throttle, tracking, watch, writers

logger = logging.getLogger(__name__)

Switchover = Literal["auto", "pause-before"]
CONTEXTS = (nbd_connection.BASE_ALLOCATION, nbd_connection.ALLOCATION_DEPTH)


class QemuSession:
    """A running QEMU, with one read-only export for each disk that is to be sent.

    Made by :func:`~blkmig.disk.qemu.open_qemu`. Any thread may call anything; calls that talk to QEMU come one after
    the other. `force` uses iothread disks where that is dangerous. With `switchover` ``"pause-before"`` the writers are
    held by QEMU's own migration, for which holding waits `switchover_timeout` seconds.
    """

    def __init__(
        self,
        where: address.QemuAddress,
        *,
        force: bool = False,
        switchover: Switchover = "auto",
        switchover_timeout: float = 3600.0,
        timeout: float = 60.0,
    ) -> None:
        self._lock = threading.RLock()
        self._open: set[int] = set()
        self._held: set[int] = set()
        self._refused = False
        self.is_whole_vm = switchover == "pause-before"
        self._is_synced = False
        """The writers are held, and everything they wrote is marked."""

        self._qmp = qmp.QmpConnection(where.path, timeout=timeout)
        self.own = objects.OwnObjects(self._qmp)
        self.connections: list[nbd_connection.NbdConnection] = []
        self.files: list[imagefile.ImageFile | None] = []
        """What the disks are read from; None where that is the export."""

        self._writers: writers.Writers | None = None
        try:
            self._set_up(where, force, switchover, switchover_timeout)
        except BaseException:
            self._shut_down()
            raise

    def _set_up(
        self, where: address.QemuAddress, force: bool, switchover: Switchover, switchover_timeout: float
    ) -> None:
        self._commands = discover.check_version(self._qmp)
        is_vm = "query-status" in self._commands
        if switchover == "pause-before" and not is_vm:
            cause = "only a VM migrates as a whole; this is a storage daemon"
            raise errors.DeviceError("cannot pause before the switchover", device=self._qmp.device, cause=cause)
        leftovers.remove(self._qmp)
        facts = graph.BlockGraph.ask(self._qmp, self._commands)()
        self.disks = discover.find_disks(self._qmp, facts, where)
        self.image_names = [facts.image_names(disk.node) for disk in self.disks]
        discover.check_iothreads(self._qmp, self.disks, force=force)
        export_names = [self._export_name(number) for number in range(len(self.disks))]
        if where.read == "auto":
            self.files = [imagefile.open_file(where.path, facts, disk) for disk in self.disks]
        else:
            self.files = [None] * len(self.disks)
        self._watch = watch.GraphWatch(self._qmp, self._commands, self.disks, export_names, self.files)
        self.own.start_server(where.nbd)
        for number, disk in enumerate(self.disks):
            self._export(number, disk)
        self.extents = [extents.Extents(connection) for connection in self.connections]
        self._tracking = [
            # QEMU's own migration may take bitmaps along, and none that is exported.
            tracking.Tracking(self.own, disk, number, self.extents[number], keeps_open=switchover == "auto")
            for number, disk in enumerate(self.disks)
        ]
        limits: dict[str, throttle.WriteLimit] = {}
        self._throttles = [
            throttle.Throttle(self._qmp, self.own, disk, facts.throttle_group(disk.node), limits) for disk in self.disks
        ]
        self._sync = syncing.DirtySync(self._qmp, self._watch, self._tracking, self._throttles)
        kind: type[writers.Writers] = writers.Writers
        options: dict[str, Any] = {}
        if switchover == "pause-before":
            kind, options = writers.PreSwitchover, {"drop": self._drop, "wait": switchover_timeout}
        self._writers = kind(
            self._qmp,
            self.own,
            self.disks,
            read_graph=self._watch.read,
            named=where.exports,
            is_vm=is_vm,
            **options,
        )
        self._writers.prepare()
        self._watch.remember()
        self._open = set(range(len(self.disks)))

    def _export(self, number: int, disk: discover.QemuDisk) -> None:
        name = self._export_name(number)
        self.own.add_export(name, disk.node, **{"allocation-depth": True})
        self.connections.append(self.own.connect(name, disk.name, CONTEXTS))

    def _export_name(self, number: int) -> str:
        return f"{self.own.prefix}d{number}"

    # -- dirty tracking ----------------------------------------------------------------------------------------------

    def create_dirty_bitmap(self, number: int, granularity: int) -> dirty.DirtyBitmap:
        """Track the writes of a disk in one more bitmap. The first one starts the tracking in QEMU."""
        with self._lock:
            mine = self._tracking[number]
            bitmap = dirty.DirtyBitmap(mine.disk.size, granularity)
            if not mine.active:
                mine.granularity = min(granularity, tracking.GRANULARITY)
                mine.add()
                self._throttles[number].start()
            self.extents[number].forget()
            mine.trackers = (*mine.trackers, bitmap)
            return bitmap

    def release_dirty_bitmap(self, number: int, bitmap: dirty.DirtyBitmap) -> None:
        """Stop tracking in `bitmap`; the last one ends the tracking in QEMU."""
        with self._lock:
            mine = self._tracking[number]
            mine.trackers = tuple(tracker for tracker in mine.trackers if tracker is not bitmap)
            if not mine.trackers:
                with contextlib.suppress(qmp.QmpGone):
                    mine.remove_all()

    def sync_dirty(self, number: int) -> None:
        """Fetch what was written to a disk. With the writers held, fetch it for all disks at once, and only once."""
        with self._lock:
            if not self._held:
                self._sync.fetch(number)
            elif self._is_synced:
                self._check_quiet()
            else:
                self._sync.fetch_the_last()
                self._is_synced = True

    def _check_quiet(self) -> None:
        self._the_writers.check_nobody_writes(self._sync.check_quiet())

    # -- writers -----------------------------------------------------------------------------------------------------

    def hold_writers(self, number: int) -> None:
        """Hold the writers of all disks at the first call; the others change nothing."""
        with self._lock:
            if not self._held:
                self._is_synced = False
                self._refused = False
                self._the_writers.hold(self._watch.fresh(), meanwhile=self._sync.start_the_last)
            self._held.add(number)

    def release_writers(self, number: int, *, refuse: bool) -> None:
        """Release the writers of all disks at the last call, or keep them held if one call said `refuse`."""
        with self._lock:
            if number not in self._held:
                return
            self._refused |= refuse
            if len(self._held) > 1:
                self._held.discard(number)
                return
            try:
                if self._is_synced:
                    self._check_quiet()
                elif self._refused:
                    self._the_writers.check_nobody_writes(self._watch.read())
            except BaseException:
                self._refused = False  # the source is the only true copy: its writers go on here
                raise
            finally:
                self._held.discard(number)
                self._the_writers.release(refuse=self._refused)

    def written_bytes(self, number: int) -> int | None:
        """Return how many bytes the writers of a disk have written since some moment."""
        with self._lock:
            return self._throttles[number].written_bytes()

    @property
    def _the_writers(self) -> writers.Writers:
        assert self._writers is not None, "a session that is set up"
        return self._writers

    def migrate(self, uri: str) -> None:
        """Start QEMU's own migration, of RAM and devices, to its `uri` (``pause-before`` only).

        Whoever has a monitor may do it instead. If the disks are closed before they have moved, it is cancelled.
        """
        self._vm_migration().migrate(uri)

    def when_pre_switchover(self, call: Callable[[], None]) -> None:
        """Call `call`, in a thread of ours, as soon as QEMU's own migration waits for the last pass.

        For ``pause-before`` only, once: ``session.when_pre_switchover(migration.switchover)``. Never called if QEMU's
        migration does not get there before the disks are closed.
        """
        watch = self._vm_migration().watch
        threading.Thread(target=watch, args=(call,), name="blkmig-switchover", daemon=True).start()

    def _vm_migration(self) -> writers.PreSwitchover:
        if not isinstance(self._writers, writers.PreSwitchover):
            raise errors.StateError("the VM does not migrate as a whole", state="auto", required="pause-before")
        return self._writers

    def throttle_writers(self, number: int, fraction: float) -> bool:
        """Slow a disk's writers down to `fraction` of the speed they had; False if this disk cannot be."""
        with self._lock:
            return self._throttles[number].set(fraction)

    # -- the end -----------------------------------------------------------------------------------------------------

    def close_disk(self, number: int) -> None:
        """Remove what belongs to a disk; the last one ends the session. Never raises for what is gone; safe twice."""
        with self._lock:
            if number not in self._open:
                return
            self._open.discard(number)
            if not self._open:
                self._shut_down()

    def _shut_down(self) -> None:
        """Release the writers, lift throttles, remove everything of ours from QEMU, disconnect."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._qmp.close)
            stack.callback(self._drop)
            for limit in getattr(self, "_throttles", ()):
                stack.callback(self._try, limit.lift, "lift the throttle")
            if self._writers is not None:
                stack.callback(self._try, self._writers.close, "undo the preparations")
                stack.callback(self._try, self._let_go, "release the writers")

    def _let_go(self) -> None:
        self._held.clear()
        self._the_writers.release(refuse=False)

    def _drop(self) -> None:
        """Remove our exports, bitmaps and NBD server: the server closes first, then our end."""
        self.own.remove_all()
        for mine in getattr(self, "_tracking", ()):
            mine.disconnect()
        for connection in self.connections:
            connection.close()
        for file in self.files:
            if file is not None:
                file.close()

    def _try(self, undo: Callable[[], None], what: str) -> None:
        try:
            undo()
        except qmp.QmpGone:
            pass
        except errors.DeviceError as error:
            logger.warning("could not %s of %s: %s", what, self._qmp.device, error)
