# SPDX-License-Identifier: GPL-2.0-or-later
"""Dirty tracking by QEMU: a chain of bitmaps. The newest bitmap records, older ones are listed and removed.

One step of a disk, from bitmap *i* to *i + 1*::

    add       bitmap i + 1                     nothing is missed: both record for a moment
    list      BLOCK_STATUS of bitmap i         ──► marks in the local DirtyBitmaps
    open      export i + 1, connect to it      so that the next step, which may be that of the pause, lists at once;
                                               export i goes now, bitmap i with the next step

QEMU marks a write when it *finishes*. So all writes in the list of bitmap *i* are on the disk before blkmig reads it. A
write that this read misses is in bitmap *i + 1*, which recorded before the list was made. Listing after reading, or
adding after listing, would lose writes.

Since QEMU 7.1 a bitmap that records can be exported read-only, by node and name. An exported bitmap can be neither
stopped nor removed nor migrated. Without such an export, the older bitmap is frozen, exported and then listed. A bitmap
that could not be listed stays in `older`, and is listed with the next step: nothing is lost.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from .. import errors, logs
from ..disk import dirty
from ..nbd import connection as nbd_connection
from ..nbd import extents
from . import discover, graph, objects, qmp

logger = logs.Logger(__name__)

GRANULARITY = 64 << 10
"""The most bytes that a bit of QEMU's bitmaps stands for; that takes 2 MiB of memory for each TiB of disk."""

AREAS_AT_A_TIME = 4096
"""Dirty areas are marked in lists of so many, so that memory is bounded."""

MAX_PEEK = 16 << 30
"""For disks up to this size, searching a bitmap for a dirty area takes less time than a QMP command."""


class Tracking:
    """The bitmaps of one disk, in QEMU and here. Under the session's lock.

    Without `keeps_open` no bitmap is exported while it records.
    """

    def __init__(
        self,
        own: objects.OwnObjects,
        disk: discover.QemuDisk,
        number: int,
        known_extents: extents.Extents,
        *,
        keeps_open: bool,
    ) -> None:
        self.disk = disk
        self.trackers: tuple[dirty.DirtyBitmap, ...] = ()
        self.active = ""
        """The bitmap that records; "" while nobody tracks."""

        self.granularity = GRANULARITY
        self.older: list[str] = []
        """Bitmaps before the active one that are not listed yet."""

        self._removals: list[Callable[[], None]] = []
        """Functions that wait until QEMU has removed a bitmap."""

        self._to_remove: list[str] = []
        """Bitmaps to remove: those that were listed, and those that are about to be added, until they are in use."""

        self._open: tuple[str, nbd_connection.NbdConnection] | None = None
        """A bitmap that is exported while it records, and the connection to that export."""

        self._keeps_open = keeps_open
        self._own = own
        self._stem = f"{own.prefix}d{number}-b"
        self._count = 0
        self._extents = known_extents

    @property
    def is_open(self) -> bool:
        """Whether the active bitmap can be listed at once."""
        return self._open is not None and self._open[0] == self.active

    @property
    def is_exported(self) -> bool:
        """Whether one of the bitmaps is exported. Only a disk that was written has such an export, to make its next
        step quick. A disk that is never written needs no command in the pause, and no second connection.
        """
        return self._open is not None

    def is_dirty(self, facts: Callable[[], graph.BlockGraph]) -> bool:
        """Return whether the active bitmap has marks. For a large disk the graph tells that faster than a list."""
        if self._open is not None and self.is_open and self.disk.size <= MAX_PEEK:
            return any(True for _ in self._areas(*self._open))
        return dirty_count(facts(), self.disk, self.active) > 0

    # -- one step ----------------------------------------------------------------------------------------------------

    def new_name(self) -> str:
        """Return the name of a bitmap that is about to be added. It is not in use yet."""
        self._count += 1
        name = f"{self._stem}{self._count}"
        self._to_remove.append(name)
        return name

    def use(self, name: str) -> None:
        """Note that the bitmap `name` records now; the one before it is to be listed."""
        self._to_remove.remove(name)
        if self.active:
            self.older.append(self.active)
        self.active = name

    def list_older(self) -> int:
        """Take the marks of the older bitmaps, and return how many bytes they had."""
        total = 0
        while self.older:
            total += self._list(self.older[0])
            self._to_remove.append(self.older.pop(0))
        return total

    def start_preparing(self) -> Callable[[], None]:
        """Begin to open the active bitmap in place of the one that was listed, so that the next step is quick.

        Returns a function that waits until it is open. It must be called.
        """
        with contextlib.ExitStack() as stack:
            if not self.is_open:
                opened, self._open = self._open, None
                if opened is not None:
                    stack.callback(opened[1].close)  # last: the server closes first
                    stack.callback(self._own.start_removing_export(opened[0]))
                if self._keeps_open:
                    stack.callback(self._await_open, self.active, self._start_opening())
            rest = stack.pop_all()
        return rest.close

    def drop_unused(self) -> None:
        """Begin to remove the bitmaps that were listed, or that never came into use.

        This is not a part of the step itself: the pause may follow at once, and would wait for QEMU to read this.
        """
        self._finish_removals()
        exported = [name for name in self._to_remove if self._open is not None and name == self._open[0]]
        for name in self._to_remove:
            if name not in exported:  # nobody waits for its end, because nothing depends on it
                self._removals.append(self._own.start_removing_bitmap(self.disk.node, name))
        self._to_remove = exported

    def remove_all(self) -> None:
        """Remove the bitmaps, because nobody tracks any more."""
        names = [*self._to_remove, *self.older, *([self.active] if self.active else [])]
        self._to_remove, self.older, self.active = [], [], ""
        try:
            if self._open is not None:
                self._own.remove_export(self._open[0])
        finally:
            self.disconnect()
        self._finish_removals()
        for name in names:
            self._own.remove_bitmap(self.disk.node, name)

    def _finish_removals(self) -> None:
        while self._removals:
            self._removals.pop(0)()

    def disconnect(self) -> None:
        """Close blkmig's end of an export that QEMU has closed already."""
        opened, self._open = self._open, None
        if opened is not None:
            opened[1].close()

    # -- details -----------------------------------------------------------------------------------------------------

    def _list(self, name: str) -> int:
        if self._open is not None and self._open[0] == name:
            return self._mark(*self._open)
        node = self.disk.node
        self._own.freeze_bitmap(node, name)
        with self._own.exported(
            name, node, device=self.disk.name, context=context_of(name), bitmaps=[name]
        ) as connection:
            return self._mark(name, connection)

    @staticmethod
    def _areas(name: str, connection: nbd_connection.NbdConnection) -> Iterator[tuple[int, int]]:
        return dirty_areas(connection.block_status(context_of(name), 0, connection.size))

    def _mark(self, name: str, connection: nbd_connection.NbdConnection) -> int:
        total = 0
        self._extents.forget()  # before marking: whoever clears a mark, and then asks for holes, gets a new answer
        found = self._areas(name, connection)
        while areas := list(itertools.islice(found, AREAS_AT_A_TIME)):
            total += sum(nbytes for _, nbytes in areas)
            for tracker in self.trackers:
                tracker.mark_areas(areas)
        return total

    def _start_opening(self) -> qmp.Command:
        node, name = self.disk.node, self.active
        return self._own.start_adding_export(name, node, bitmaps=[{"node": node, "name": name}])

    def _await_open(self, name: str, adding: qmp.Command) -> None:
        try:
            adding.result()
        except qmp.QmpError as error:
            logger.info("bitmaps are exported when they are listed, not before: %s", error)
            self._keeps_open = False
            return
        try:
            self._open = name, self._own.connect(name, self.disk.name, (context_of(name),))
        except BaseException:
            with contextlib.suppress(errors.DeviceError):
                self._own.remove_export(name)
            raise


def start_adding(own: objects.OwnObjects, trackings: Sequence[Tracking]) -> Callable[[], None]:
    """Begin to add a recording bitmap for each of `trackings`; return a function that waits until all record.

    It is one command for all, because QEMU and the QMP library take half a millisecond for each command.
    """
    if not trackings:
        return lambda: None
    names = [mine.new_name() for mine in trackings]
    adding = own.start_adding_bitmaps(
        (mine.disk.node, name, mine.granularity) for mine, name in zip(trackings, names, strict=True)
    )

    def finish() -> None:
        adding.result()
        for mine, name in zip(trackings, names, strict=True):
            mine.use(name)

    return finish


def prepare(trackings: Iterable[Tracking]) -> None:
    """Open the active bitmaps of `trackings` together. If one fails, its error is raised when the others are done."""
    with contextlib.ExitStack() as stack:
        for mine in trackings:
            stack.callback(mine.start_preparing())


def context_of(name: str) -> str:
    """Return the meta context of a bitmap."""
    return f"qemu:dirty-bitmap:{name}"


def dirty_count(facts: graph.BlockGraph, disk: discover.QemuDisk, name: str) -> int:
    """Return how many bytes a bitmap has marked. Raises :class:`~blkmig.errors.DeviceError` if it does not record."""
    bitmap = facts.bitmap(disk.node, name)
    if bitmap is None or not bitmap.get("recording", True) or bitmap.get("inconsistent"):
        cause = f"bitmap {name} was removed or disabled by somebody else; writes were missed, start again"
        raise errors.DeviceError("lost its dirty tracking", device=disk.name, cause=cause)
    return int(bitmap["count"])


def dirty_areas(statuses: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the (offset, nbytes) of the dirty extents in the (length, flags) of a whole disk."""
    offset = 0
    for length, flags in statuses:
        if flags & 1:
            yield offset, length
        offset += length
