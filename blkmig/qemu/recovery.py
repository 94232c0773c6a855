# SPDX-License-Identifier: GPL-2.0-or-later
"""Bringing a QEMU that a killed blkmig left behind back to work: what ``blkmig cleanup`` does.

::

    exports, bitmaps, limits, server     removed (`leftovers.py`)
    QEMU's own migration                 cancelled, if the run took part in it: its disks would never come
    capabilities                         switched off, if the run had switched them on
    writable exports, the guest          opened again, let go on: if the run held them, and the disks have not moved

The run's marks in QEMU (`marks.py`) say what it had done. A guest whose disks may have moved stays stopped until the
user says `force`: two VMs on copies of one disk are worse than none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from .. import errors, logs
from . import leftovers, marks, objects, preswitchover, qmp

logger = logs.Logger(__name__)

GUEST_SECONDS = 10.0
ASK_SECONDS = 0.02
PAUSES = "pause-before-switchover"
UNDER_WAY = ("setup", "wait-unplug", "active", "pre-switchover", "cancelling")
"""Statuses of QEMU's migration in which the VM is certainly still here. In ``device`` it is being handed over."""


class Recovery:
    """One clean-up over `connection`. `say` is called with a description of each thing that is done."""

    def __init__(self, connection: qmp.QmpConnection, say: Callable[[str], None], *, force: bool) -> None:
        self._qmp = connection
        self._say = say
        self._force = force
        self._is_vm = "query-status" in {entry["name"] for entry in connection.execute("query-commands")}

    def run(self) -> None:
        """Do everything that can be done. Blocks.

        Raises :class:`~blkmig.errors.InDoubt` at the end if the disks may have moved, without `force`.
        """
        found = leftovers.remove(self._qmp)
        for what in found.removed:
            self._say(what)
        if self._is_vm:
            self._end_migration(found)
        for run, left in found.marks.items():
            self._restore_capabilities(run, left)
        in_doubt = [run for run, left in found.marks.items() if not self._release(run, left)]
        if in_doubt:
            raise errors.InDoubt(MAY_HAVE_MOVED.format(self._qmp.device))
        if found.is_alive:
            logger.warning("%s: a blkmig is running; what belongs to it stays", self._qmp.device)
        elif self._is_vm:
            self._tell_of_stopped_guest()

    # -- QEMU's own migration ----------------------------------------------------------------------------------------

    def _end_migration(self, found: leftovers.Leftovers) -> None:
        """Cancel a migration that waits for the disks of a dead run."""
        took_part = any(marks.VM in left for left in found.marks.values())
        if took_part and not self._force:
            with contextlib.suppress(qmp.QmpTimeout):
                self._await(lambda: self._migration_status() != "device", "the VM to be handed over")
        status = self._migration_status()
        if status == "device" and not self._force:
            raise errors.InDoubt(IS_HANDED_OVER.format(self._qmp.device))
        if status == "completed" and took_part:
            self._say("QEMU's own migration is completed: the VM runs at its target, and stays stopped here")
        elif status in (*UNDER_WAY, "device") and (took_part or (self._force and not found.is_alive)):
            was_stopped = not self._is_running()
            self._qmp.execute("migrate_cancel")
            self._await(lambda: self._migration_status() not in (*UNDER_WAY, "device"), "its migration to be cancelled")
            self._say(f"QEMU's own migration, which was {status}: cancelled")
            if was_stopped and status in ("pre-switchover", "device"):
                self._await_guest()
            if not took_part:
                self._tell_of_pausing("cancelled")
        elif not found.is_alive and not took_part:
            self._tell_of_pausing(status)

    def _tell_of_pausing(self, status: str) -> None:
        """Report a QEMU that waits, or will wait, for a blkmig of which nothing is known; with `force` change that."""
        known = {entry["capability"]: entry["state"] for entry in self._qmp.execute("query-migrate-capabilities")}
        if not known.get(PAUSES):
            return
        if self._force and status not in UNDER_WAY:
            preswitchover.set_capabilities(self._qmp, [PAUSES], state=False)
            self._say(f"capability {PAUSES}: off")
            return
        waits = f"QEMU's migration is {status}" if status in UNDER_WAY else "QEMU's next migration will wait"
        logger.warning(
            "%s: %s, %s is on, and nothing tells of a blkmig that takes part; blkmig cleanup --force ends that",
            self._qmp.device,
            waits,
            PAUSES,
        )

    def _await_guest(self) -> None:
        """Return when QEMU lets the guest go on, after its migration was cancelled."""
        with contextlib.suppress(qmp.QmpTimeout):
            self._await(self._is_running, "the guest to go on")
        if self._status() == "finish-migrate":
            self._qmp.execute("cont")
        self._say("the guest: goes on" if self._is_running() else f"the guest: {self._status()}")

    def _restore_capabilities(self, run: str, left: list[str]) -> None:
        """Switch off what a run had switched on."""
        listed = [mark for mark in left if mark.startswith(marks.CAPABILITY)]
        names = [mark.removeprefix(marks.CAPABILITY) for mark in listed]
        preswitchover.set_capabilities(self._qmp, names, state=False)
        for name in names:
            self._say(f"capability {name}: off again")
        self._remove(run, [*listed, *(mark for mark in left if mark == marks.VM)])

    def _migration_status(self) -> str:
        return str(self._qmp.execute("query-migrate").get("status", "none"))

    # -- writers -----------------------------------------------------------------------------------------------------

    def _release(self, run: str, left: list[str]) -> bool:
        """Let the writers go on that a run held. Return False if they must not."""
        if marks.HELD in left or marks.MOVED in left:
            exports = filter(None, map(marks.WritingExport.from_mark, left))
            closed = [export for export in exports if self._is_closed(export)]
            is_stopped = self._is_vm and self._status() == "paused"
            if marks.MOVED in left and (closed or is_stopped) and not self._force:
                return False
            for export in closed:
                self._open_again(export)
            if is_stopped:
                self._qmp.execute("cont")
                self._say("the guest, stopped for the last pass: goes on")
        self._remove(run, [mark for mark in left if mark in (marks.HELD, marks.MOVED) or mark.startswith(marks.EXPORT)])
        return True

    def _is_closed(self, export: marks.WritingExport) -> bool:
        """Return whether it is closed; one that is being closed is waited for."""
        if objects.list_exports(self._qmp).get(export.id):
            self._await(
                lambda: export.id not in objects.list_exports(self._qmp), f"the export {export.id} to be closed"
            )
        return export.id not in objects.list_exports(self._qmp)

    def _open_again(self, export: marks.WritingExport) -> None:
        try:
            export.start_opening(self._qmp).result()
        except qmp.QmpError as error:
            self._say(f"the export {export.id}, closed for the last pass: cannot be opened again ({error.text})")
        else:
            self._say(f"the export {export.id}, closed for the last pass: open again")

    def _remove(self, run: str, found: list[str]) -> None:
        for mark in found:
            with qmp.ignoring_missing():
                self._qmp.execute("object-del", {"id": f"{run}-{mark}"})

    def _tell_of_stopped_guest(self) -> None:
        if self._status() == "paused":
            logger.warning("%s: the guest is stopped; unless its disks have moved: cont", self._qmp.device)

    def _status(self) -> str:
        return str(self._qmp.execute("query-status")["status"])

    def _is_running(self) -> bool:
        return bool(self._qmp.execute("query-status")["running"])

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        """Ask again and again until `condition` holds."""
        deadline = time.monotonic() + GUEST_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise qmp.QmpTimeout(f"waiting for {what}", device=self._qmp.device, cause=TOO_LONG)
            time.sleep(ASK_SECONDS)


TOO_LONG = "it takes too long; if it goes through exec:, end the command that it runs, and clean up again"
IS_HANDED_OVER = (
    "{0}: QEMU was told to hand the VM over, and does not come to an end: look at the target's QEMU. If it has the VM "
    "(query-status: running), end this one; if not, end that one, and then: blkmig cleanup --force {0}"
)
MAY_HAVE_MOVED = (
    "{0}: the writers stay held: the end of the stream of a --move had left, so that the target may own the disks. "
    "Look at the target: if its blkmig, or QEMU, says that it has everything, end this QEMU; if not, remove what is "
    "there, and let the writers go on here: blkmig cleanup --force {0}"
)
