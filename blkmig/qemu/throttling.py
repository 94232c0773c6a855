# SPDX-License-Identifier: GPL-2.0-or-later
"""The throttles of all disks of a session: to slow writers down, and to release writes that a throttle has queued."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from . import discover, graph, objects, qmp, throttle


class Throttles:
    """The throttles, one for each of `disks`; several disks may share a throttle group. Under the session's lock."""

    def __init__(
        self,
        connection: qmp.QmpConnection,
        own: objects.OwnObjects,
        disks: Sequence[discover.QemuDisk],
        facts: graph.BlockGraph,
    ) -> None:
        self._qmp = connection
        limits: dict[str, throttle.WriteLimit] = {}
        counters = throttle.WriteCounters(connection)
        self.each = [
            throttle.Throttle(connection, own, disk, facts.throttle_group(disk.node), limits, counters)
            for disk in disks
        ]
        groups = (each.group_limit() for each in self.each)
        self._groups = {limit.belongs_to: limit for limit in groups if limit is not None}
        self._is_stale = True

    def look(self) -> None:
        """Ask for the limits of all throttle groups at once, unless that was done since the last `forget`.

        Call it outside of the pause, which has no time to ask about each group. A limit that the user sets after this
        call is not known in the pause. If writes that such a limit has queued make the pause too long, the pause is
        given up, and the next one knows the limit.
        """
        if self._is_stale:
            for take in [limit.look() for limit in self._groups.values()]:
                take()
            self._is_stale = False

    def forget(self) -> None:
        """Make the next `look` ask again, because time has passed."""
        self._is_stale = True

    @contextlib.contextmanager
    def letting_go(self) -> Iterator[None]:
        """Lift all limits of throttle groups, the user's and blkmig's, in a ``with``; after it they apply again.

        An export is closed when its last request is over. A request in a throttle's queue may wait for seconds, and
        every other writer would wait with it. (QEMU itself empties the queues of a guest that is stopped.)
        """
        self.look()
        is_limited = False
        with contextlib.ExitStack() as stack:
            for limit in self._groups.values():
                if limit.suspend():
                    stack.callback(self._resume, limit)
                    is_limited = True
            if is_limited:
                self._qmp.execute("transaction", {"actions": []})  # it drains all nodes, which empties the queues
            yield

    def _resume(self, limit: throttle.GroupLimit) -> None:
        with self._qmp.leaving():
            limit.resume()
