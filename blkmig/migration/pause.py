# SPDX-License-Identifier: GPL-2.0-or-later
"""The pause of a migration: the writers of all disks are held, and then go on or are refused.

::

    hold, disk by disk ──── the last pass ──── release(), or release(refuse=True)
    └─────────────────────── the downtime ──────────────────────────────────────┘

A pause that fails leaves no writer held: until all are refused the source is the only true copy, so its writers go on,
and an error of letting them go becomes a note to the first one. Migration thread only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .. import disk, errors


class Pause:
    """The time in which the writers of `disks` are held, from its making on; see `pausing`."""

    def __init__(self, disks: list[disk.BlockBackend], clock: Callable[[], float]) -> None:
        self._disks = disks
        self._clock = clock
        self._held_at = clock()
        self._held = contextlib.ExitStack()

    def hold(self) -> None:
        """Keep the writers out; blocks until all of their writes in flight are done."""
        for backend in self._disks:
            self._held.callback(backend.release_writers)
            backend.hold_writers()

    def release(self, *, refuse: bool = False) -> float:
        """Let the writers go on, or `refuse` them for good; return the downtime in seconds."""
        if refuse:
            for backend in self._disks:
                backend.release_writers(refuse=True)
            self._held.pop_all()
        self._held.close()
        return self._clock() - self._held_at


@contextlib.contextmanager
def pausing(disks: list[disk.BlockBackend], clock: Callable[[], float]) -> Iterator[Pause]:
    """Hold the writers of `disks` for the body of a ``with``, which releases them; after an error they go on."""
    pause = Pause(disks, clock)
    try:
        pause.hold()
        yield pause
    except BaseException as error:
        with errors.keeping(error):
            pause.release()
        raise
