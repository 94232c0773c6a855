# SPDX-License-Identifier: GPL-2.0-or-later
"""Checking that all writes still come through the tracked nodes: the block graph is compared with that of the start.

If a snapshot moves the writers to another node, blkmig's bitmaps do not get their writes any more. Then the migration
ends with an error that says so, and not with a wrong copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .. import errors
from . import discover, graph, imagefile, qmp

FRESH_SECONDS = 0.02
"""Seconds for which a graph is recent enough to find the writers in it. A change is noticed after the hold."""


class GraphWatch:
    """The graph around `disks`, with blkmig's exports of them, and the files of those disks that are read from files.

    Under the session's lock.
    """

    def __init__(
        self,
        connection: qmp.QmpConnection,
        commands: frozenset[str],
        disks: Sequence[discover.QemuDisk],
        export_names: Sequence[str],
        files: Sequence[imagefile.ImageFile | None],
    ) -> None:
        self._qmp = connection
        self._commands = commands
        self._disks = disks
        self._export_names = export_names
        self._files = files
        self._homes: list[frozenset[str]] = []
        self._last: tuple[float, graph.BlockGraph] | None = None

    def ask(self, *, exports: bool = True) -> Callable[..., graph.BlockGraph]:
        """Ask QEMU for the graph, with or without `exports`; return a function that waits for it."""
        return graph.BlockGraph.ask(self._qmp, self._commands, exports=exports)

    def read(self) -> graph.BlockGraph:
        """Return the graph as it is now."""
        return self.ask()()

    def remember(self) -> None:
        """Take the present graph as the one that later graphs must equal."""
        facts = self.read()
        self._homes = [facts.ancestors(disk.node) for disk in self._disks]

    def check(self, facts: graph.BlockGraph, *, keep: bool = False) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` unless the disks stand where they stood, and can be read.

        With `keep` the graph is kept for `fresh`.
        """
        for disk, name in zip(self._disks, self._export_names, strict=True):
            if name not in facts.exports:
                cause = "blkmig's export was deleted by somebody else, or QEMU's NBD server was stopped"
                raise errors.DeviceError("cannot be read any more", device=disk.name, cause=cause)
        self.check_nodes(facts)
        if keep:
            self._last = time.monotonic(), facts

    def check_nodes(self, facts: graph.BlockGraph) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` unless the disks stand where they stood."""
        around = zip(self._disks, self._homes, self._export_names, self._files, strict=True)
        for disk, home, name, file in around:
            export = facts.exports.get(name)
            has_moved = export is not None and export["node-name"] != disk.node
            if has_moved or facts.ancestors(disk.node) != home:
                where = f"it was node {disk.node}, below {', '.join(sorted(home - {disk.node})) or 'no other'}"
                cause = f"a snapshot was taken or a block job was started ({where}): finish that, then send it again"
                raise errors.DeviceError("its block graph has changed", device=disk.name, cause=cause)
            size = facts.nodes[disk.node]["image"]["virtual-size"] if disk.node in facts.nodes else disk.size
            if size != disk.size:
                cause = f"it had {disk.size} bytes, and has {size} now: send it again"
                raise errors.DeviceError("its size has changed", device=disk.name, cause=cause)
            if file is not None and imagefile.file_name(facts, disk.node) != file.name:
                cause = f"its image was {file.name}, in the page cache, and node {disk.node} was opened again otherwise"
                raise errors.DeviceError("its image has changed", device=disk.name, cause=cause)

    def fresh(self) -> graph.BlockGraph | None:
        """Return the graph that was kept last, if it is recent."""
        if self._last is None or time.monotonic() - self._last[0] > FRESH_SECONDS:
            return None
        return self._last[1]
