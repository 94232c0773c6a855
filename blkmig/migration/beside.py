# SPDX-License-Identifier: GPL-2.0-or-later
"""The threads that use the disks of a stream beside the one that loads it: barriers flush, answers and proofs read.

**Whoever closes a disk ends them first.** `TargetSet` does so, which is the one that closes disks; so it does not
matter what a source says, and when: also behind READY it may ask, and then say COMMIT. An end stops a thread behind the
verb that is under way, a read of one block or a flush. A cancel ends that, too, and nothing else is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import errors


class Beside:
    """Those threads, of one stream. The loading thread's."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []
        self.settle: Callable[[], None] = lambda: None
        """Waits for the flush that is under way beside the writes, and raises what one has raised."""

    def add(self, *ends: Callable[[], None]) -> None:
        """Have `ends` be called before a disk is closed. Each returns when its thread uses no disk, also if called
        twice."""
        self._ends += ends

    def end(self) -> None:
        """Return when no thread uses the disks any more. Blocks shortly. Twice does no harm."""
        errors.each(self._ends)
