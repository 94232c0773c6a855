# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of an outgoing migration, and its end: everything is released once, whatever fails on the way.

::

    none ─ setup ─► active ─ complete ─► device ──► completed
                      │  ▲      (writers held)
                      │  ├──────────────────┘ the pause was given up
                      └──┘ iterate
             any of them ─► failed, or cancelling ─► cancelled

Migration thread only. A fork's child has nothing of a migration: link and disks are its parent's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from .. import errors, stats, threads
from . import figures, turns


class Life:
    """The states of the migration that `measured` tells of; at its end, `releases` are called in their order."""

    def __init__(self, measured: figures.Figures, releases: Sequence[Callable[[], None]]) -> None:
        self._figures = measured
        self._releases = releases
        self._pid = os.getpid()
        self._turn = turns.Turn()
        self._is_left = False
        self.is_complete = False
        """All is done, and only the clean-up may be left."""

        self.error: BaseException | None = None
        """What has ended it, once that is so."""

    @property
    def status(self) -> stats.Status:
        """Return the state."""
        return self._figures.stats.status

    @property
    def is_over(self) -> bool:
        """Return whether there is nothing left to end, in this process."""
        return self.status in ("completed", "failed", "cancelled") or self._pid != os.getpid()

    def require(self, status: stats.Status) -> None:
        """Raise unless the migration is in the state that a call needs, and in its own process."""
        if self._pid != os.getpid():
            state = f"of process {self._pid}"
            raise errors.StateError("a fork's child cannot go on with it", state=state, required="of this process")
        if self.status != status:
            raise errors.StateError("the call is not possible now", state=self.status, required=status)

    @contextlib.contextmanager
    def driving(self, status: stats.Status) -> Iterator[None]:
        """Require a state for a ``with`` whose body drives the migration, and that no other call does so."""
        self.require(status)
        with self._turn.taken(lambda: self.status, status):
            self.require(status)
            if self._is_left:
                raise errors.StateError("its with is over", state=self.status, required="in its with")
            yield

    def end_others(self, cancel: Callable[[], None]) -> None:
        """Cancel a call of another thread that drives the migration, and wait until it has returned. Blocks.

        None begins from now on.
        """
        self._is_left = True  # first: a call that has not seen it has the turn by then
        self._turn.end_others(cancel)

    def end(self, error: BaseException | None) -> None:
        """Release everything and say how it ended; `error` is what ended it, and stays the error. None: success."""
        if error is None:
            self.is_complete = True
            self._clean_up()
            self._figures.finish("completed")
            return
        self.error = error
        cancelled = isinstance(error, errors.Cancelled) or not isinstance(error, Exception)
        try:
            with errors.keeping(error):
                self._clean_up("cancelling" if cancelled else None)
        finally:
            with errors.keeping(error):
                self._figures.finish("cancelled" if cancelled else "failed")

    def abandon(self, first: Sequence[Callable[[], object]], status: stats.Status) -> None:
        """Release what can be while the migration's thread hangs for good; `first` comes before. From any thread.

        Blocks for `threads.STEP_SECONDS` with whatever hangs, too. The process must end then.
        """
        for call in (*first, *self._releases, lambda: self._figures.finish(status)):
            threads.in_time(call, threads.STEP_SECONDS)

    def _clean_up(self, status: stats.Status | None = None) -> None:
        """Enter `status` and release everything."""
        entering = [] if status is None else [lambda: self._figures.enter(status)]
        errors.each([*entering, *self._releases])
