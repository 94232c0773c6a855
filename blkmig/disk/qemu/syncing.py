# SPDX-License-Identifier: GPL-2.0-or-later
"""What was written to a session's disks, fetched from QEMU's bitmaps: while the writers run, and when they are held.

::

    writers run     fetch            disk by disk, and the bitmaps go on by one step
    writers held    fetch_the_last   all disks at once; from then on bitmaps record that must stay clean
                    check_quiet      they did

Marks are worth something only while all writes come through the nodes that are tracked, into bitmaps that record. So
each of the three compares the block graph with what it was at the start (`watch.py`), before anybody relies on them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ... import errors
from . import graph, throttle, tracking, watch


class DirtySync:
    """Has the local bitmaps of all disks in `trackings` follow those in QEMU. Under the session's lock."""

    def __init__(
        self,
        graph_watch: watch.GraphWatch,
        trackings: Sequence[tracking.Tracking],
        throttles: Sequence[throttle.Throttle],
    ) -> None:
        self._watch = graph_watch
        self._tracking = trackings
        self._throttles = throttles

    def fetch(self, number: int) -> None:
        """Mark what was written to a disk until now; the graph that tells what marks are worth comes meanwhile."""
        mine, answers = self._tracking[number], self._watch.ask()
        before = mine.active
        if not mine.is_open:
            self._watch.check(answers())
        if not mine.active:
            return
        if mine.is_dirty(answers):
            mine.add()
        self._throttles[number].count_dirty(mine.list_older())
        mine.prepare()
        facts = answers()
        self._watch.check(facts, keep=mine.is_open)
        tracking.dirty_count(facts, mine.disk, before)  # raises if it recorded no more

    def fetch_the_last(self, before_hold: graph.BlockGraph) -> None:
        """Mark what was written to all disks, whose writers are held; from here on bitmaps record that must stay clean.

        The graph is that of before they were held: `check_quiet` looks again when all is read.
        """
        self._watch.check(before_hold)
        tracked = [mine for mine in self._tracking if mine.active]
        for mine in tracked:
            if not mine.is_open:  # nobody can remove or stop what is exported
                tracking.dirty_count(before_hold, mine.disk, mine.active)  # raises if it records no more
            mine.add()
        for mine in tracked:
            mine.list_older()

    def check_quiet(self) -> graph.BlockGraph:
        """Raise if a disk was written although its writers are held: what was sent of it is not what it holds.

        Returns the graph that tells so.
        """
        facts = self._watch.read()
        self._watch.check(facts)
        for mine in self._tracking:
            if mine.active and tracking.dirty_count(facts, mine.disk, mine.active):
                cause = "somebody writes past the guest and the exports, a block job perhaps; the copy is not complete"
                raise errors.DeviceError("was written while its writers were held", device=mine.disk.name, cause=cause)
        return facts
