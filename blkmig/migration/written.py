# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the writers write, by what their disks count: what they dirty is more, for each write dirties whole blocks.

Only disks that count what is written to them can tell, and all of a migration's disks must. A disk behind a monitor is
asked for it, so nobody asks in the pause. Migration thread only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from .. import disk, errors

APART_SECONDS = 1.0
"""Two counts that are closer to each other tell nothing, and are not worth a question."""


def count_written(disks: Iterable[disk.BlockBackend]) -> int | None:
    """Return what the writers of all disks have written; None if one of the disks does not count that. May block."""
    counts = [backend.written_bytes() for backend in disks]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


class WrittenRate:
    """How fast the writers of some disks write."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._before: tuple[float, int] | None = None
        self.has_begun = False
        """Somebody has looked."""

        self.per_second: float | None = None
        """Bytes per second between the last two counts; None while nobody knows."""

    def look(self, disks: Iterable[disk.BlockBackend]) -> None:
        """Count, if it is time. May block; not for the pause."""
        now, self.has_begun = self._clock(), True
        if self._before is not None and now - self._before[0] < APART_SECONDS:
            return
        written = None
        with contextlib.suppress(errors.DeviceError):  # it is for words alone, and must not end a migration
            written = count_written(disks)
        if written is None:
            return
        if self._before is not None:
            self.per_second = max(written - self._before[1], 0) / (now - self._before[0])
        self._before = now, written
