# SPDX-License-Identifier: GPL-2.0-or-later
"""What was written to a session's disks, fetched from QEMU's bitmaps: while the writers run, and when they are held.

::

    writers run     fetch            disk by disk, and the bitmaps go on by one step
    being held      start_the_last   from when they are held on, bitmaps record that must stay clean
    writers held    fetch_the_last   all disks at once
                    check_quiet      those bitmaps are clean

Marks are worth something only while all writes come through the nodes that are tracked, into bitmaps that record. So
each of the three compares the block graph with what it was at the start (`watch.py`), before anybody relies on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ... import errors
from . import graph, qmp, throttle, tracking, watch


class DirtySync:
    """Has the local bitmaps of all disks in `trackings` follow those in QEMU. Under the session's lock."""

    def __init__(
        self,
        connection: qmp.QmpConnection,
        graph_watch: watch.GraphWatch,
        trackings: Sequence[tracking.Tracking],
        throttles: Sequence[throttle.Throttle],
    ) -> None:
        self._qmp = connection
        self._watch = graph_watch
        self._tracking = trackings
        self._throttles = throttles
        self._before_hold: graph.BlockGraph | None = None
        self._recorded: list[tuple[tracking.Tracking, str]] = []
        """The bitmaps that recorded before the writers were held, of those that somebody may remove or stop."""

        self._quiet: tuple[qmp.Gate, Callable[[], graph.BlockGraph]] | None = None
        """What the next `check_quiet` asks, which QEMU has read and does not answer before the gate is open."""

    def fetch(self, number: int) -> None:
        """Mark what was written to a disk until now; the graph that tells what marks are worth comes meanwhile."""
        mine = self._tracking[number]
        mine.drop_unused()
        answers = self._watch.ask()
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

    def start_the_last(self, before_hold: graph.BlockGraph) -> Callable[[], None]:
        """Have QEMU read, while the writers are being held, that new bitmaps shall record: `QmpConnection.withhold`.

        Call what is returned when they are held, and not before: what is in flight would be marked in them.
        """
        tracked = [mine for mine in self._tracking if mine.active]
        self._recorded = [(mine, mine.active) for mine in tracked if not mine.is_open]
        self._before_hold, self._quiet = before_hold, None
        gate = self._qmp.withhold()
        additions = [mine.start_adding() for mine in tracked]

        def finish() -> None:
            if not gate.is_shut:  # another thread wanted an answer, and QEMU ran this before it was time
                _await_all(additions)
                additions[:] = [mine.start_adding() for mine in tracked]
            self._qmp.let_run()
            if not self._recorded:  # to list those takes commands, and the question would run before all is read
                self._quiet = self._qmp.withhold(), self._watch.ask(exports=False)
            _await_all(additions)

        return finish

    def fetch_the_last(self) -> None:
        """Mark what was written to all disks, whose writers are held.

        The graph is that of before they were held: `check_quiet` looks again when all is read.
        """
        assert self._before_hold is not None, "writers are held"
        self._watch.check(self._before_hold)
        for mine, name in self._recorded:
            tracking.dirty_count(self._before_hold, mine.disk, name)  # raises if it records no more
        for mine in self._tracking:
            if mine.active:
                mine.list_older()

    def check_quiet(self) -> graph.BlockGraph:
        """Raise if a disk was written although its writers are held: what was sent of it is not what it holds.

        Returns the graph that tells so, without exports.
        """
        asked, self._quiet = self._quiet, None
        # Once it has been let run, the answer may be older than what was read since.
        facts = asked[1]() if asked is not None and asked[0].is_shut else self._watch.ask(exports=False)()
        self._watch.check_nodes(facts)
        for mine in self._tracking:
            if mine.active and tracking.dirty_count(facts, mine.disk, mine.active):
                cause = "somebody writes past the guest and the exports, a block job perhaps; the copy is not complete"
                raise errors.DeviceError("was written while its writers were held", device=mine.disk.name, cause=cause)
        return facts


def _await_all(ends: Iterable[Callable[[], object]]) -> None:
    for await_end in ends:
        await_end()
