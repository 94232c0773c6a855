# SPDX-License-Identifier: GPL-2.0-or-later
"""Slowing the writers of a QEMU disk down, and restoring the limits that the user has set.

Only writes are limited, so that blkmig's reads are not. A guest's disk takes ``block_set_io_throttle``; a node with a
throttle filter above it takes new limits for the filter's group. No other disk can be throttled.

A fraction refers to the speed between the start of the tracking and the first throttling. That is what the guest wrote,
or, if QEMU does not count it, what became dirty.

While the limits are changed, the user's limits are kept inside QEMU, in a throttle group that nobody uses. If blkmig is
killed meanwhile, the next blkmig finds them there, and restores them.
"""

from __future__ import annotations

import abc
import re
import time
from collections.abc import Callable
from typing import Any

from . import discover, objects, qmp, vocabulary

FLOOR = 64 << 10
"""Bytes per second that a guest may always write: a guest that cannot write at all breaks."""

FRESH_SECONDS = 0.05
"""Seconds for which a device's counter is recent enough, because speeds are measured over seconds."""


KEPT = "limits"
"""Part of the name of the throttle group that keeps the user's limits; their owner follows, in hexadecimal."""


class WriteCounters:
    """How many bytes the guest's devices have written. One answer of QEMU serves all disks for a moment."""

    def __init__(self, connection: qmp.QmpConnection, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._qmp = connection
        self._clock = clock
        self._asked: float | None = None
        self._written: dict[str, int] = {}

    def of(self, qdev: str) -> int | None:
        """Return the counter of a device; None if QEMU has none."""
        if self._asked is None or self._clock() - self._asked > FRESH_SECONDS:
            stats = self._qmp.execute("query-blockstats")
            self._written = {entry["qdev"]: int(entry["stats"]["wr_bytes"]) for entry in stats if "qdev" in entry}
            self._asked = self._clock()
        return self._written.get(qdev)


class Throttle:
    """The write limit of one disk. Under the session's lock.

    `shared` holds the limits by what they belong to, for all disks of the session: a throttle group may have several
    disks.
    """

    def __init__(
        self,
        connection: qmp.QmpConnection,
        own: objects.OwnObjects,
        disk: discover.QemuDisk,
        group: str | None,
        shared: dict[str, WriteLimit],
        counters: WriteCounters,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._qmp = connection
        self._own = own
        self._disk = disk
        self._group = group
        self._shared = shared
        self._counters = counters
        self._clock = clock
        self._started = clock()
        self._written_before = self._written()
        self._dirtied = 0
        self._speed: float | None = None
        self._limit: WriteLimit | None = None

    def count_dirty(self, nbytes: int) -> None:
        """Note that so many bytes became dirty since the last call."""
        self._dirtied += nbytes

    def start(self) -> None:
        """Measure from now on."""
        self._started, self._written_before, self._dirtied, self._speed = self._clock(), self._written(), 0, None

    def set(self, fraction: float) -> bool:
        """Limit writes to `fraction` of the speed measured before the first limit; 1 lifts it. False: cannot."""
        if not self._disk.qdev and self._group is None:
            return False
        if fraction >= 1:
            self.lift()
            return True
        if self._speed is None:
            self._speed = self._measure()
        if self._limit is None:
            self._limit = self._find_limit()
        self._limit.lower(self._disk.node, max(FLOOR, int(self._speed * fraction)))
        return True

    def lift(self) -> None:
        """Restore the user's own limits, if blkmig has changed them."""
        if self._limit is not None:
            self._limit.lift(self._disk.node)

    def group_limit(self) -> GroupLimit | None:
        """Return the limits of the throttle group that the disk's writers go through; None if there is none."""
        return None if self._group is None else self._find_group_limit(self._group)

    def _find_limit(self) -> WriteLimit:
        if self._group is None:
            found: WriteLimit = GuestLimit(self._qmp, self._own, self._disk.qdev)
            return self._shared.setdefault(found.belongs_to, found)
        return self._find_group_limit(self._group)

    def _find_group_limit(self, group: str) -> GroupLimit:
        found = self._shared.setdefault(f"{GroupLimit.kind}{group}", GroupLimit(self._qmp, self._own, group))
        assert isinstance(found, GroupLimit)
        return found

    def written_bytes(self) -> int:
        """Return what the writers have written; if QEMU does not count that, what its bitmaps had."""
        written = self._written()
        return self._dirtied if written is None else written

    def _measure(self) -> float:
        written = self._written()
        nbytes = self._dirtied if written is None else written - (self._written_before or 0)
        return nbytes / max(self._clock() - self._started, 0.001)

    def _written(self) -> int | None:
        return self._counters.of(self._disk.qdev) if self._disk.qdev else None


class WriteLimit(abc.ABC):
    """The limits of one throttle group: the user's own limits, and what disks demand; the lowest demand counts.

    `target` is what the limits are set on, `belongs_to` what they are limits of.
    """

    kind: str
    key: str
    belongs_to: str

    def __init__(self, connection: qmp.QmpConnection, own: objects.OwnObjects, target: str) -> None:
        self._qmp = connection
        self._own = own
        self._target = target
        self._kept_in = f"{own.prefix}{KEPT}-{self.kind}{target.encode().hex()}"
        self._demands: dict[str, int] = {}
        self._users: dict[str, Any] = {}
        """The user's own limits as they were read last, not those that blkmig has set."""

    def lower(self, node: str, limit: int) -> None:
        """Limit writes to `limit` bytes per second for the sake of `node`."""
        if not self._demands:
            self._users = self.read()
            self._own.add_throttle_group(self._kept_in, vocabulary.as_group_limits(self._users))
        self._demands[node] = limit
        self.write(vocabulary.lower_write_limit(self._users, min(self._demands.values()), self.key))

    def lift(self, node: str) -> None:
        """Drop the demand of `node`. Without any demand the user's own limits apply again."""
        if self._demands.pop(node, None) is not None:
            self._hold_again()

    def _hold_again(self) -> None:
        """Apply the lowest demand, or the user's own limits if there is no demand."""
        if self._demands:
            self.write(vocabulary.lower_write_limit(self._users, min(self._demands.values()), self.key))
        else:
            self.write(self._users)
            self._own.remove_object(self._kept_in)

    @abc.abstractmethod
    def read(self) -> dict[str, Any]:
        """Ask QEMU for the limits."""

    @abc.abstractmethod
    def write(self, limits: dict[str, Any]) -> None:
        """Tell QEMU."""


class GroupLimit(WriteLimit):
    """The limits of a throttle-group object."""

    kind = "g"
    key = "bps-write"

    def __init__(self, connection: qmp.QmpConnection, own: objects.OwnObjects, target: str) -> None:
        super().__init__(connection, own, target)
        self.belongs_to = f"{self.kind}{target}"
        self._is_suspended = False

    def lift(self, node: str) -> None:
        """Do as for any limit. Limits that could not be resumed, because QEMU did not answer, are resumed before."""
        self.resume()
        super().lift(node)

    def look(self) -> Callable[[], None]:
        """Ask QEMU for the user's limits; return a function that waits for the answer, and keeps it."""
        if self._demands:
            return lambda: None  # they are known since the first demand
        asked = self._qmp.start("qom-get", self._property)

        def take() -> None:
            self._users = dict(asked.result())

        return take

    def suspend(self) -> bool:
        """Lift all limits for a moment, the user's own limits, too; False if `look` has found none."""
        if not self._demands:
            if not vocabulary.is_limited(self._users):
                return False
            self._users = self.read()
            self._own.add_throttle_group(self._kept_in, vocabulary.as_group_limits(self._users))
        self._is_suspended = True
        self.write(vocabulary.unlimited(self._users))
        return True

    def resume(self) -> None:
        """Apply limits again that were lifted."""
        if self._is_suspended:
            self._hold_again()
            self._is_suspended = False

    @property
    def _property(self) -> dict[str, str]:
        return {"path": f"/objects/{self._target}", "property": "limits"}

    def read(self) -> dict[str, Any]:
        """Ask for the object's property."""
        return dict(self._qmp.execute("qom-get", self._property))

    def write(self, limits: dict[str, Any]) -> None:
        """Set the object's property."""
        set_group_limits(self._qmp, self._target, limits)


class GuestLimit(WriteLimit):
    """The limits of a guest's disk. It may share them with other disks, by -drive's ``throttling.group``."""

    kind = "q"
    key = "bps_wr"

    def __init__(self, connection: qmp.QmpConnection, own: objects.OwnObjects, target: str) -> None:
        super().__init__(connection, own, target)
        self.belongs_to = f"{self.kind}{self.read().get(vocabulary.GUEST_GROUP, target)}"

    def read(self) -> dict[str, Any]:
        """Ask for the disk's description."""
        for entry in self._qmp.execute("query-block"):
            if entry.get("qdev") == self._target:
                return vocabulary.guest_limits(entry["inserted"])
        return dict.fromkeys(vocabulary.GUEST_LIMITS, 0)

    def write(self, limits: dict[str, Any]) -> None:
        """Set them as one would by hand."""
        set_guest_limits(self._qmp, self._target, limits)


def set_group_limits(connection: qmp.QmpConnection, group: str, limits: dict[str, Any]) -> None:
    """Set the limits of a throttle-group object."""
    connection.execute("qom-set", {"path": f"/objects/{group}", "property": "limits", "value": limits})


def set_guest_limits(connection: qmp.QmpConnection, qdev: str, limits: dict[str, Any]) -> None:
    """Set the limits of a guest's disk, in the words of ``block_set_io_throttle``."""
    connection.execute("block_set_io_throttle", {"id": qdev, **limits})


_KEPT_NAME = re.compile(rf"{objects.PREFIX}[0-9a-f]+-{KEPT}-([gq])((?:[0-9a-f]{{2}})+)")


def is_kept_in(name: str) -> bool:
    """Tell whether the object called `name` keeps limits that a run has changed."""
    return _KEPT_NAME.fullmatch(name) is not None


def restore(connection: qmp.QmpConnection, kept_in: str) -> None:
    """Restore the limits that a killed run has changed, and has kept in the throttle group `kept_in`."""
    limits = connection.execute("qom-get", {"path": f"/objects/{kept_in}", "property": "limits"})
    found = _KEPT_NAME.fullmatch(kept_in)
    if found is None:
        raise ValueError(f"{kept_in!r} keeps no limits")
    kind, target = found[1], bytes.fromhex(found[2]).decode(errors="replace")
    if kind == GroupLimit.kind:
        set_group_limits(connection, target, limits)
    else:
        set_guest_limits(connection, target, vocabulary.as_guest_limits(limits))
