# SPDX-License-Identifier: GPL-2.0-or-later
"""Holding those who write to QEMU's disks: the guest, and the clients of writable exports.

A guest is held by ``stop``, which also waits for its requests. That does not hold an NBD client, and a storage daemon
has nothing to stop: there the writable exports are closed, hard, and QEMU says when the last request is over. What
a client had in flight may or may not have landed, as after a crash.

In a full VM migration (`PreSwitchover`) QEMU itself stops the guest and says ``pre-switchover``: the disks are still
the source's, and QEMU waits for ``migrate-continue``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

from ... import errors
from . import discover, exportnames, graph, objects, qmp

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class WritingExport:
    """An export through which somebody writes. `nbd_name` is None where blkmig cannot open it again as it was."""

    id: str
    node: str
    nbd_name: str | None


class Writers:
    """The writers of `disks`. Under the session's lock."""

    def __init__(
        self,
        connection: qmp.QmpConnection,
        own: objects.OwnObjects,
        disks: list[discover.QemuDisk],
        *,
        read_graph: Callable[[], graph.BlockGraph],
        named: tuple[str, ...],
        is_vm: bool,
    ) -> None:
        self._qmp = connection
        self._own = own
        self._disks = disks
        self._read_graph = read_graph
        self._named = named
        self._is_vm = is_vm
        self._names: dict[str, str] = {}
        self._undo: list[Callable[[], object]] = []

    def prepare(self) -> None:
        """See now whether the writers can be held later. Raises :class:`~blkmig.errors.DeviceError` if they cannot."""
        for export in self._find_exports(self._read_graph()):
            if export.nbd_name is None:
                logger.warning(
                    "%s: the export %r has to be closed for the last pass and cannot be opened again by blkmig",
                    self._qmp.device,
                    export.id,
                )

    def hold(
        self, known: graph.BlockGraph | None = None, *, meanwhile: Callable[[graph.BlockGraph], Callable[[], None]]
    ) -> None:
        """Stop the guest and close the writable exports; all or nothing.

        `meanwhile` is called, with the graph as it was just before that, when QEMU has been told, and what it returns
        when it has been done.

        On return nobody writes, unless somebody has come meanwhile: ask `check_nobody_writes` before trusting what was
        read. What can be found out before is, so that the writers stand still for no longer than need be; nothing is
        if the graph was `known` a moment ago.
        """
        try:
            self._await_guest()
            facts = known or self._read_graph()
            exports = self._find_exports(facts)
            ends = self._start_stopping_guest()
            for export in exports:
                self._undo.append(functools.partial(self._open_again, export))
                ends.append(objects.start_deleting_export(self._qmp, export.id))
            ends.append(meanwhile(facts))  # last: it counts on the others
            for await_end in ends:
                await_end()
        except BaseException:
            with contextlib.suppress(errors.DeviceError):
                self.release(refuse=False)
            raise

    def check_nobody_writes(self, facts: graph.BlockGraph) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if a disk has got another writer since the writers were held."""
        for disk in self._disks:
            if facts.writing_exports(disk.node):
                cause = f"an export of node {disk.node} was opened for writing meanwhile"
                raise errors.DeviceError("cannot hold its writers", device=disk.name, cause=cause)

    def release(self, *, refuse: bool) -> None:
        """Let the writers go on, or with `refuse` leave them where they are. Nothing if they are not held.

        What can be undone is, before the first error is raised.
        """
        undo, self._undo = self._undo, []
        if refuse:
            return
        with contextlib.ExitStack() as stack:
            for function in undo:
                stack.callback(function)

    def _await_guest(self) -> None:
        """Return when the guest may be stopped."""

    def _start_stopping_guest(self) -> list[Callable[[], object]]:
        """Have QEMU stop the guest; return what waits until it stands still."""
        if not (self._is_vm and self._qmp.execute("query-status")["running"]):
            return []
        self._undo.append(functools.partial(self._qmp.execute, "cont"))
        return [self._qmp.start("stop").result]

    def close(self) -> None:
        """Undo what `prepare` did in QEMU."""

    # -- exports -----------------------------------------------------------------------------------------------------

    def _find_exports(self, facts: graph.BlockGraph) -> list[WritingExport]:
        found: dict[str, None] = dict.fromkeys(self._named)
        for name in self._named:
            if name not in facts.exports:
                raise errors.DeviceError(f"has no export {name!r}", device=self._qmp.device, cause="export= names it")
        for disk in self._disks:
            found |= dict.fromkeys(self._exports_of(facts, disk))
        return [self._describe(facts, name) for name in found]

    def _exports_of(self, facts: graph.BlockGraph, disk: discover.QemuDisk) -> list[str]:
        """Return the exports through which `disk` is written, or may be where QEMU does not say."""
        candidates = facts.exports_of(disk.node, but=self._own.prefix)
        writing = facts.writing_exports(disk.node)
        if writing is None or writing == len(candidates):
            return candidates
        named = [name for name in candidates if name in self._named]
        if writing == len(named):
            return named
        if writing > len(candidates):
            cause = f"something else than an export writes node {disk.node}, a block job perhaps: let that end first"
        else:
            listed = ", ".join(candidates)
            cause = f"{writing} of its exports may write, and QEMU does not say which of {listed}: name them, export=ID"
        raise errors.DeviceError("cannot hold its writers", device=disk.name, cause=cause)

    def _describe(self, facts: graph.BlockGraph, name: str) -> WritingExport:
        if name not in self._names:
            self._names |= self._nbd_names(facts)
        return WritingExport(name, facts.exports[name]["node-name"], self._names.get(name))

    def _nbd_names(self, facts: graph.BlockGraph) -> dict[str, str]:
        try:
            names = exportnames.list_names(self._own.uri, device=self._qmp.device)
        except errors.DeviceError as error:
            logger.info("%s", error)
            return {}
        return exportnames.match(facts, names, own=self._own.prefix)

    def _open_again(self, export: WritingExport) -> None:
        if export.id in self._read_graph().exports:
            return
        if export.nbd_name is None:
            logger.warning("%s: the export %r was closed; open it again yourself", self._qmp.device, export.id)
            return
        arguments = {"type": "nbd", "id": export.id, "node-name": export.node, "name": export.nbd_name}
        self._qmp.execute("block-export-add", {**arguments, "writable": True})


class PreSwitchover(Writers):
    """The guest of a VM that migrates as a whole: RAM and devices by QEMU, disks by blkmig.

    Somebody, here or at another monitor, says ``migrate``. Holding waits for ``pre-switchover``; releasing lets QEMU
    hand over (`refuse`: the disks have moved) or cancels QEMU's migration, so that the guest goes on here.
    """

    CAPABILITIES = ("pause-before-switchover", "events")
    WAITING = "pre-switchover"
    OVER = ("completed", "failed", "cancelled")

    def __init__(self, *arguments: Any, drop: Callable[[], None], wait: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._drop = drop
        self._wait = wait
        self._before: list[dict[str, Any]] = []
        self._has_begun = False

    def prepare(self) -> None:
        """Have QEMU pause before the switchover."""
        super().prepare()
        known = self._qmp.execute("query-migrate-capabilities")
        self._before = [entry for entry in known if entry["capability"] in self.CAPABILITIES]
        self._qmp.drop_events("MIGRATION")
        self._set([{"capability": name, "state": True} for name in self.CAPABILITIES])

    def watch(self, call: Callable[[], None]) -> None:
        """Call `call` when QEMU waits for the disks; return without it when the connection is closed. Blocks."""
        with contextlib.suppress(errors.DeviceError):
            while self._qmp.execute("query-migrate").get("status") != self.WAITING:
                self._qmp.wait_event("MIGRATION", lambda data: data["status"] == self.WAITING, wait=self._wait)
            call()

    def hold(
        self, known: graph.BlockGraph | None = None, *, meanwhile: Callable[[graph.BlockGraph], Callable[[], None]]
    ) -> None:
        """Wait for ``pre-switchover``, close the writable exports; what was known before the wait is of no use."""
        super().hold(meanwhile=meanwhile)

    def _await_guest(self) -> None:
        """Wait until QEMU has sent the RAM and stopped the guest."""
        self._await(self.WAITING)
        self._undo.append(functools.partial(self._qmp.execute, "migrate_cancel"))

    def _start_stopping_guest(self) -> list[Callable[[], object]]:
        return []  # QEMU has

    def release(self, *, refuse: bool) -> None:
        """Let QEMU hand over, and return when it has; or cancel its migration, so that the guest goes on here."""
        is_waiting = bool(self._undo)
        super().release(refuse=refuse)
        if refuse and is_waiting:
            self._drop()  # QEMU gives its disks away now, and could not with an export of ours on them
            self._qmp.execute("migrate-continue", {"state": self.WAITING})
            self._await("completed")

    def migrate(self, uri: str) -> None:
        """Have QEMU begin to migrate RAM and devices to its `uri`."""
        self._qmp.execute("migrate", {"uri": uri})

    def close(self) -> None:
        """Cancel a migration that would go on without its disks, and put the capabilities back."""
        before, self._before = self._before, []
        if not before:
            return
        if self._qmp.execute("query-migrate").get("status") not in (None, "none", *self.OVER):
            self._qmp.execute("migrate_cancel")
            with contextlib.suppress(errors.DeviceError):
                self._await("cancelled")
        self._set(before)

    def _await(self, wanted: str) -> None:
        """Wait for a status of QEMU's migration; raise if it ends with another one.

        QEMU keeps the status of an older migration: an end counts once something has happened since `prepare`.
        """
        while (status := self._qmp.execute("query-migrate").get("status")) != wanted:
            if status in self.OVER and self._has_begun:
                cause = f"QEMU's migration is {status}"
                raise errors.DeviceError(f"waiting for {wanted}", device=self._qmp.device, cause=cause)
            self._qmp.wait_event("MIGRATION", lambda data: True, wait=self._wait)
            self._has_begun = True

    def _set(self, capabilities: list[dict[str, Any]]) -> None:
        if capabilities:
            self._qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
