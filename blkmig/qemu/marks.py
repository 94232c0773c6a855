# SPDX-License-Identifier: GPL-2.0-or-later
"""Marks that a run sets inside QEMU, so that others can clean up if it is killed. They are objects that nobody uses.

::

    blkmig-<random>-held              the writers are held, by this run: before QEMU is told to stop the guest
    blkmig-<random>-moved             the end of a move's stream has left, or is about to: the target may own the disks
    blkmig-<random>-export-<hex>      a writable export, as it was, that may be closed while the writers are held
    blkmig-<random>-vm                the run takes part in QEMU's own migration
    blkmig-<random>-cap-<name>        a migration capability that the run has switched on

A mark is set *before* its event, and removed after the event is undone. So the event may not have happened yet, and a
reader of a mark must look at QEMU, too. If a guest is stopped and there is no mark, somebody else has stopped it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from . import objects, qmp

HELD = "held"
MOVED = "moved"
VM = "vm"
CAPABILITY = "cap-"
EXPORT = "export-"

_MARK = re.compile(rf"({objects.PREFIX}[0-9a-f]+)-((?:{HELD}|{MOVED}|{VM})|(?:{CAPABILITY}|{EXPORT}).+)")


class Marks:
    """The marks of one run, whose names begin with `prefix`. Under the session's lock."""

    def __init__(self, connection: qmp.QmpConnection, prefix: str) -> None:
        self._qmp = connection
        self._prefix = prefix
        self._there: dict[str, None] = {}
        self._removals: list[qmp.Command] = []

    def __contains__(self, mark: str) -> bool:
        """Return whether a mark is set, or is being set."""
        return mark in self._there

    def start_adding(self, mark: str) -> qmp.Command | None:
        """Begin to add a mark; None if it is set already. QEMU runs later commands only after this one."""
        if mark in self._there:
            return None
        self._there[mark] = None
        return self._qmp.start("object-add", {"qom-type": "throttle-group", "id": self._prefix + mark})

    def add(self, *marks: str) -> None:
        """Add `marks` and wait until they are there."""
        for added in [self.start_adding(mark) for mark in marks]:
            if added is not None:
                added.result()

    def start_removing(self, *marks: str) -> None:
        """Begin to remove `marks`; `finish` waits until they are gone."""
        for mark in marks:
            if mark in self._there:
                del self._there[mark]
                self._removals.append(self._qmp.start("object-del", {"id": self._prefix + mark}))

    def remove_all(self) -> None:
        """Remove the marks that are left, and wait for all removals."""
        self.start_removing(*self._there)
        self.finish()

    def finish(self) -> None:
        """Wait for removals that are under way: QEMU drops commands that it has not read when blkmig disconnects."""
        removals, self._removals = self._removals, []
        for removal in removals:
            with qmp.ignoring_missing():
                removal.result()


@dataclasses.dataclass(frozen=True, slots=True)
class WritingExport:
    """An export through which somebody writes. `nbd_name` is None where blkmig cannot open it again as it was."""

    id: str
    node: str
    nbd_name: str | None

    @property
    def mark(self) -> str:
        """Return the mark that describes this export."""
        return EXPORT + json.dumps([self.id, self.node, self.nbd_name]).encode().hex()

    @classmethod
    def from_mark(cls, mark: str) -> WritingExport | None:
        """Return the export that a mark describes; None for any other mark."""
        if not mark.startswith(EXPORT):
            return None
        try:
            name, node, nbd_name = json.loads(bytes.fromhex(mark.removeprefix(EXPORT)))
        except ValueError:
            return None
        return cls(str(name), str(node), str(nbd_name))

    def start_opening(self, connection: qmp.QmpConnection) -> qmp.Command:
        """Begin to open the export again, as it was."""
        arguments = {"type": "nbd", "id": self.id, "node-name": self.node, "name": self.nbd_name}
        return connection.start("block-export-add", {**arguments, "writable": True})


def read(listed: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the marks among the `listed` objects, grouped by the run that has set them."""
    found: dict[str, list[str]] = {}
    for entry in listed:
        mark = _MARK.fullmatch(entry["name"])
        if mark is not None:
            found.setdefault(mark[1], []).append(mark[2])
    return found
