# SPDX-License-Identifier: GPL-2.0-or-later
"""Holding the writers of a session's disks: QEMU can only hold those of all disks together.

The first disk that holds its writers holds the writers of all disks. When the last disk releases them, all of them go
on; if one disk has said that it has moved, none of them does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

from .. import errors
from . import qmp, syncing, throttling, watch, writers

PauseMode = Literal["auto", "pause-before"]
"""Who pauses the guest: blkmig, or its QEMU, which moves the whole VM and has `pause-before-switchover`."""

RELEASE_SECONDS = 10.0
"""Seconds that QEMU may take to let the writers go on. After a cancel, too, it is waited for: a guest must not stay
stopped."""

NOBODY_KNOWS = (
    "the disks have moved, and their writers here stay held; whether somebody has written past these while the last "
    "of it was sent is not known"
)


class Holding:
    """Which disks hold the writers, and whether everything that was written is marked. Under the session's lock."""

    def __init__(
        self,
        connection: qmp.QmpConnection,
        all_writers: writers.Writers,
        sync: syncing.DirtySync,
        graph_watch: watch.GraphWatch,
        throttles: throttling.Throttles,
    ) -> None:
        self._qmp = connection
        self._writers = all_writers
        self._sync = sync
        self._watch = graph_watch
        self._throttles = throttles
        self._held: set[int] = set()
        self._refused = False
        self._is_synced = False
        """The writers are held, and everything they wrote is marked."""

    @property
    def is_held(self) -> bool:
        """Whether the writers are held."""
        return bool(self._held)

    def hold(self, number: int) -> None:
        """Hold the writers of all disks at the first call; further calls change nothing."""
        if not self._held:
            self._is_synced = False
            self._refused = False
            with self._throttles.letting_go():
                self._writers.hold(self._watch.fresh(), meanwhile=self._sync.start_the_last)
        self._held.add(number)

    def sync(self, numbers: Sequence[int]) -> None:
        """Fetch what was written to some disks. With the writers held, fetch it for all disks, and only once."""
        if not self._held:
            self._sync.fetch(numbers)
            self._throttles.look()
            return
        if self._is_synced:
            self._check_quiet()
        else:
            self._sync.fetch_the_last()
            self._is_synced = True
        self._sync.ask_for_quiet()

    def about_to_move(self) -> bool:
        """Have the hold that follows mark that the target may own the disks, as `Writers.about_to_move`; the last
        `sync` waits for the mark. Raises :class:`~blkmig.errors.StateError` if it comes too late for that."""
        if self._held:
            raise errors.StateError("about_to_move comes before hold_writers", state="held", required="not held")
        return self._writers.about_to_move()

    def _check_quiet(self) -> None:
        facts = self._sync.check_quiet()
        self._writers.await_mark()
        self._writers.check_nobody_writes(facts)

    def release(self, number: int, *, refuse: bool) -> None:
        """Release the writers of all disks at the last call, or keep them held if one call said `refuse`."""
        if number not in self._held:
            if not self._held:
                self._writers.stays()
            return
        self._refused |= refuse
        self._throttles.forget()
        if len(self._held) > 1:
            self._held.discard(number)
            return
        has_moved = self._refused and self._writers.may_have_moved
        try:
            with self._qmp.leaving(RELEASE_SECONDS) if has_moved else contextlib.nullcontext():  # no cancel undoes that
                if self._is_synced:
                    self._check_quiet()
                elif self._refused:
                    self._writers.check_nobody_writes(self._watch.read())
        except BaseException as error:
            if has_moved:
                self._writers.is_in_doubt = True
                if isinstance(error, qmp.QmpGone | qmp.QmpTimeout):
                    raise errors.NotVerified(f"{NOBODY_KNOWS}: {error}") from error
                error.add_note("the disks have moved all the same, and their writers here stay held")
                raise
            is_harmless = isinstance(error, errors.Cancelled) and not self._refused  # no copy that could be wrong
            self._refused = False  # the source is the only correct copy, so its writers go on here
            if not is_harmless:
                raise
        finally:
            self._held.discard(number)
            with self._qmp.leaving(RELEASE_SECONDS) if not self._refused else contextlib.nullcontext():
                self._writers.release(refuse=self._refused)

    def leave_in_doubt(self, number: int) -> None:
        """Leave the writers of all disks held for good."""
        self._writers.is_in_doubt = True
        self._held.discard(number)
        if not self._held:
            self._writers.release(refuse=True)

    def let_go(self) -> None:
        """Let the writers of all disks go on, no matter how many disks hold them."""
        self._held.clear()
        with self._qmp.leaving(RELEASE_SECONDS):
            self._writers.release(refuse=False)
