# SPDX-License-Identifier: GPL-2.0-or-later
"""Dirty tracking by QEMU: a chain of bitmaps of which the newest records, and older ones are listed and removed.

One step of a disk, from bitmap *i* to *i + 1*::

    transaction    add bitmap i+1, then disable bitmap i       nothing is missed: both record for a moment
    export i       read-only, with the frozen bitmap
    list           BLOCK_STATUS qemu:dirty-bitmap:i            ──► marks in the local DirtyBitmaps
    drop           export i, bitmap i

QEMU marks a write when it *finishes*. So what the frozen bitmap has is on the disk before our read, and what our read
missed is in the next one. Listing after reading instead would lose writes.

A bitmap that could not be listed stays in `frozen` and is listed with the next step; nothing is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ... import errors
from .. import dirty, extents
from . import discover, graph, objects, qmp

GRANULARITY = 64 << 10
"""Bytes that a bit of QEMU's bitmaps stands for, at most: 2 MiB of memory for each TiB of disk."""


class Tracking:
    """The bitmaps of one disk, in QEMU and here. Under the session's lock."""

    def __init__(
        self, own: objects.OwnObjects, disk: discover.QemuDisk, number: int, known_extents: extents.Extents
    ) -> None:
        self.disk = disk
        self.trackers: tuple[dirty.DirtyBitmap, ...] = ()
        self.active = ""
        """The bitmap that records, "" while nobody tracks."""

        self.granularity = GRANULARITY
        self.frozen: list[str] = []
        self._own = own
        self._stem = f"{own.prefix}d{number}-b"
        self._count = 0
        self._extents = known_extents

    def next_name(self) -> str:
        """Return the name for a new bitmap and note that it is about to be added."""
        self._count += 1
        name = f"{self._stem}{self._count}"
        self._own.note_bitmap(self.disk.node, name)
        return name

    def add_arguments(self, name: str) -> dict[str, object]:
        """Return the arguments of block-dirty-bitmap-add. The bitmap is not stored in the image."""
        return {"node": self.disk.node, "name": name, "granularity": self.granularity, "persistent": False}

    def list_frozen(self) -> int:
        """Mark what the frozen bitmaps have, then remove them; return how many bytes they had."""
        total = 0
        while self.frozen:
            total += self._list(self.frozen[0])
            self._own.remove_bitmap(self.disk.node, self.frozen.pop(0))
        return total

    def _list(self, name: str) -> int:
        context = f"qemu:dirty-bitmap:{name}"
        node, device, total = self.disk.node, self.disk.name, 0
        self._extents.forget()  # before the marks: who clears a mark and then asks for holes gets a younger answer
        with self._own.exported(name, node, device=device, context=context, bitmaps=[name]) as connection:
            for offset, nbytes in dirty_areas(connection.block_status(context, 0, connection.size)):
                total += nbytes
                for tracker in self.trackers:
                    tracker.mark(offset, nbytes)
        return total

    def remove_all(self) -> None:
        """Remove the bitmaps; nobody tracks any more."""
        names = [*self.frozen, *([self.active] if self.active else [])]
        self.frozen, self.active = [], ""
        for name in names:
            self._own.remove_bitmap(self.disk.node, name)


def swap(connection: qmp.QmpConnection, disks: list[Tracking]) -> None:
    """Start a new bitmap on each of `disks` and freeze the old one, in one transaction: all or nothing."""
    names = [tracking.next_name() for tracking in disks]
    actions = []
    for tracking, name in zip(disks, names, strict=True):
        actions.append({"type": "block-dirty-bitmap-add", "data": tracking.add_arguments(name)})
        old = {"node": tracking.disk.node, "name": tracking.active}
        actions.append({"type": "block-dirty-bitmap-disable", "data": old})
    connection.execute("transaction", {"actions": actions})
    for tracking, name in zip(disks, names, strict=True):
        tracking.frozen.append(tracking.active)
        tracking.active = name


def dirty_count(facts: graph.BlockGraph, tracking: Tracking) -> int:
    """Return how many bytes are marked now; raise :class:`~blkmig.errors.DeviceError` if nothing records any more."""
    bitmap = facts.bitmap(tracking.disk.node, tracking.active)
    if bitmap is None or not bitmap.get("recording", True) or bitmap.get("inconsistent"):
        cause = f"bitmap {tracking.active} was removed or disabled by somebody else; writes were missed, start again"
        raise errors.DeviceError("lost its dirty tracking", device=tracking.disk.name, cause=cause)
    return int(bitmap["count"])


def dirty_areas(statuses: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the (offset, nbytes) of the dirty extents in the (length, flags) of a whole disk."""
    offset = 0
    for length, flags in statuses:
        if flags & 1:
            yield offset, length
        offset += length
