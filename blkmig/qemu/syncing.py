# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetching from QEMU's bitmaps what was written to a session's disks: while the writers run, and when they are held.

::

    writers run     fetch            several disks together; each disk that was written gets its next bitmap
    being held      start_the_last   from the hold on, bitmaps record that must stay clean
    writers held    fetch_the_last   all disks at once
                    check_quiet      those bitmaps are clean

Marks are complete only while all writes come through the tracked nodes, into bitmaps that record. So all but
`fetch_the_last` compare the block graph with that of the start (`watch.py`), before anybody relies on the marks.

A disk that nobody writes needs no command of its own: one answer of QEMU has the counts of all bitmaps. If a disk was
not written between its last fetch and the hold, its recording bitmap is still clean, and must stay clean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import errors
from . import graph, objects, qmp, throttle, tracking, watch

FEW = 4
"""If a session has no more disks than this, all of them get a new bitmap while they are being held. That takes 0.4 ms
for each disk in the pause; asking which disks need one takes 1 to 2 ms. With more disks, only those that were written
get one."""


class DirtySync:
    """Makes the local bitmaps of all disks in `trackings` follow those in QEMU. Under the session's lock."""

    def __init__(
        self,
        connection: qmp.QmpConnection,
        own: objects.OwnObjects,
        graph_watch: watch.GraphWatch,
        trackings: Sequence[tracking.Tracking],
        throttles: Sequence[throttle.Throttle],
    ) -> None:
        self._qmp = connection
        self._own = own
        self._watch = graph_watch
        self._tracking = trackings
        self._throttles = throttles
        self._are_few = len(trackings) <= FEW
        self._idle: list[tracking.Tracking] = []
        """The disks that were given no new bitmap when the writers were held."""

        self._counts: Callable[[], graph.BlockGraph] | None = None
        """Waits for QEMU's answer about these disks, which it was asked behind the hold."""

        self._quiet: tuple[qmp.Gate, Callable[[], graph.BlockGraph]] | None = None
        """The question of the next `check_quiet`: QEMU has read it already, and answers once the gate is open."""

    def fetch(self, numbers: Sequence[int]) -> None:
        """Mark what was written to some disks until now. QEMU is asked meanwhile for the graph, which is checked
        then."""
        mine = [self._tracking[number] for number in numbers]
        for each in mine:
            each.drop_unused()
        answers = self._watch.ask()
        tracked = [(each, each.active) for each in mine if each.active]
        if not all(each.is_open for each in mine):
            self._watch.check(answers())
        if not tracked:
            return
        written = [each for each, _ in tracked if each.is_dirty(answers)]
        tracking.prepare(written)  # of those that are to be listed for the first time
        tracking.start_adding(self._own, written)()
        for number in numbers:
            self._throttles[number].count_dirty(self._tracking[number].list_older())
        tracking.prepare(each for each, _ in tracked if self._are_few or each in written or each.is_exported)
        facts = answers()
        self._watch.check(facts, keep=all(each.is_open or each not in written for each, _ in tracked))
        for each, before in tracked:
            tracking.dirty_count(facts, each.disk, before)  # raises if the bitmap does not record any more

    def start_the_last(self, before_hold: graph.BlockGraph) -> Callable[[], None]:
        """Make QEMU read the command for new bitmaps while the writers are being held: see `QmpConnection.withhold`.

        Call the returned function when the writers are held, not before: the new bitmaps must not get writes that were
        still in flight. The graph from before the hold is compared here, while QEMU is busy; `check_quiet` looks again
        when everything has been read.
        """
        tracked = [mine for mine in self._tracking if mine.active]
        ahead = [mine for mine in tracked if self._are_few or mine.is_open]
        self._idle = [mine for mine in tracked if mine not in ahead]
        recorded = [(mine.disk, mine.active) for mine in ahead if not mine.is_open]
        self._counts = self._quiet = None
        gate = self._qmp.withhold()
        await_bitmaps = self._start_ahead(ahead)
        self._watch.check(before_hold)
        for disk, name in recorded:  # not exported, so that others could remove or stop them
            tracking.dirty_count(before_hold, disk, name)  # raises if the bitmap does not record any more

        def finish() -> None:
            again = await_bitmaps
            if not gate.is_shut:  # another thread waited for an answer, so QEMU has run this command too early
                await_bitmaps()
                again = self._start_ahead(ahead)
            self._qmp.let_run()
            again()

        return finish

    def _start_ahead(self, ahead: Sequence[tracking.Tracking]) -> Callable[[], None]:
        """Begin to give some disks new bitmaps and to ask about the others; return what waits for the new bitmaps."""
        await_bitmaps = tracking.start_adding(self._own, ahead)
        if self._idle:
            self._counts = self._watch.ask(exports=False)
        return await_bitmaps

    def ask_for_quiet(self) -> None:
        """Have QEMU read the question of the next `check_quiet`. Any other command would let it run too early."""
        self._quiet = self._qmp.withhold(), self._watch.ask(exports=False)

    def fetch_the_last(self) -> None:
        """Mark what was written to all disks, whose writers are held."""
        if self._counts is not None:
            self._step_idle(self._counts())
        for mine in self._tracking:
            if mine.active:
                mine.list_older()

    def _step_idle(self, facts: graph.BlockGraph) -> None:
        """Give new bitmaps to those idle disks that were written meanwhile; `facts` is a graph from after the hold."""
        self._watch.check_nodes(facts)
        written = [mine for mine in self._idle if tracking.dirty_count(facts, mine.disk, mine.active)]
        tracking.prepare(written)  # while they record; what comes until the next ones do is listed
        tracking.start_adding(self._own, written)()

    def check_quiet(self) -> graph.BlockGraph:
        """Raise if a disk was written although its writers are held: what was sent of it differs from what it holds.

        Returns the graph that was checked, without exports.
        """
        asked, self._quiet = self._quiet, None
        # If QEMU was let run the question before, its answer may be older than the last reads.
        facts = asked[1]() if asked is not None and asked[0].is_shut else self._watch.ask(exports=False)()
        self._watch.check_nodes(facts)
        for mine in self._tracking:
            if mine.active and tracking.dirty_count(facts, mine.disk, mine.active):
                cause = "somebody writes past the guest and the exports, a block job perhaps; the copy is not complete"
                raise errors.DeviceError("was written while its writers were held", device=mine.disk.name, cause=cause)
        return facts
