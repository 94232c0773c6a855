# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest of a VM that migrates as a whole: RAM and devices by QEMU, disks by blkmig.

::

    QEMU      migrate ── RAM ──► pre-switchover ............................. migrate-continue ──► completed
                                 (guest stopped, the disks are still here)    ▲
    blkmig    bulk, rounds ────► hold: the last pass ─ the target's word ─────┘

QEMU, too, waits until its target confirms (``return-path``): if the target cannot load the VM, QEMU's migration fails,
and the guest goes on here. Over a one-way channel, such as ``exec:cat >FILE``, no target can confirm anything, so the
user must say that.

Until ``migrate-continue`` nothing can run at the target, whatever it has of the disks. So if blkmig's migration ends
before that, QEMU's is cancelled, and the guest goes on here. After ``migrate-continue`` QEMU decides. If QEMU says
nothing for HAND_OVER_SECONDS, the outcome is not known, and both sides are left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from .. import errors, logs
from . import graph, marks, qmp, writers

logger = logs.Logger(__name__)

CAPABILITIES = ("pause-before-switchover", "events")
RETURN_PATH = "return-path"
WAITING = "pre-switchover"
OVER = ("completed", "failed", "cancelled")
CANCEL_SECONDS = 10.0
HAND_OVER_SECONDS = 60.0
"""Seconds that the target may take to load the rest of the VM; it has the disks and the memory already."""


class PreSwitchover(writers.Writers):
    """The writers of a VM that migrates as a whole. Somebody else, maybe at another monitor, starts QEMU's migration.

    Holding waits for ``pre-switchover``. Releasing lets QEMU hand over (`refuse`: the disks have moved), or cancels
    QEMU's migration, so that the guest goes on here.
    """

    def __init__(
        self, *arguments: Any, return_path: bool, drop: Callable[[], None], wait: float, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._capabilities = (*CAPABILITIES, *([RETURN_PATH] if return_path else []))
        self._drop = drop
        self._wait = wait
        self._changed: list[str] = []
        """The capabilities that this run has switched on."""

        self._is_prepared = False
        # Set by the connection's thread.
        self._status: str | None = None
        """The last status of QEMU's migration since `prepare`. QEMU itself still tells that of an older migration."""

        self._was_running = False
        """Whether the guest ran when QEMU's migration began; only then it goes on after a cancel."""

    def prepare(self) -> None:
        """Make QEMU pause before the switchover."""
        super().prepare()
        self._marks.add(marks.VM)
        self._is_prepared = True
        self._qmp.listen(("MIGRATION",), self._heard)
        known = {entry["capability"]: entry["state"] for entry in self._qmp.execute("query-migrate-capabilities")}
        for name in self._capabilities:
            if known.get(name) is False:
                self._marks.add(f"{marks.CAPABILITY}{name}")
                self._changed.append(name)
        set_capabilities(self._qmp, self._changed, state=True)

    def _heard(self, event: qmp.Event) -> None:
        self._status = event["data"]["status"]
        if self._status in ("setup", "active"):
            self._was_running = self._guest.is_running

    def watch(self, call: Callable[[], None]) -> None:
        """Call `call` when QEMU waits for the disks. Return without that if QEMU's migration ends before. Blocks."""
        with contextlib.suppress(errors.MigrationError):
            if self._await_one_of(WAITING, *OVER) == WAITING:
                call()

    def check(self) -> None:
        """Raise if QEMU's migration has ended: nobody will come for the disks."""
        if self._status in OVER:
            raise self._over_error("the disks cannot move any more")

    def hold(
        self, known: graph.BlockGraph | None = None, *, meanwhile: Callable[[graph.BlockGraph], Callable[[], None]]
    ) -> None:
        """Wait for ``pre-switchover``, and close the writable exports. `known` is out of date after the wait."""
        super().hold(meanwhile=meanwhile)

    def _await_guest(self) -> None:
        """Wait until QEMU has sent the RAM and stopped the guest."""
        if self._await_one_of(WAITING, *OVER) != WAITING:
            raise self._over_error(f"waiting for {WAITING}")
        self._undo.append(lambda: self._cancel)

    def _stops_guest(self) -> bool:
        return False  # QEMU has stopped it

    def check_nobody_writes(self, facts: graph.BlockGraph) -> None:
        """Raise also if QEMU's migration is over, because the guest goes on here then."""
        self.check()
        super().check_nobody_writes(facts)

    def about_to_move(self) -> bool:
        """Return False: the target cannot use the disks before QEMU hands over, so there is no doubt."""
        return False

    def release(self, *, refuse: bool) -> None:
        """Let QEMU hand over, and return when it has; or cancel its migration, so that the guest goes on here.

        Raises :class:`~blkmig.errors.InDoubt` if QEMU was told to hand over, and has not said how that ended.
        """
        is_waiting = bool(self._undo)
        super().release(refuse=refuse)
        if refuse and is_waiting:
            self._drop()  # QEMU gives its disks up now, and cannot do that while blkmig exports them
            self._hand_over()

    def _hand_over(self) -> None:
        self.is_in_doubt = True
        try:
            self._qmp.execute("migrate-continue", {"state": WAITING})
            status = self._await_one_of(*OVER, wait=HAND_OVER_SECONDS)
        except (qmp.QmpGone, qmp.QmpTimeout, errors.Cancelled) as error:
            raise errors.InDoubt(IN_DOUBT.format(self._qmp.device, error)) from error
        self.is_in_doubt = False
        if status != "completed":
            with contextlib.suppress(errors.DeviceError):
                self._await_guest_running()
            raise self._over_error("the disks have moved, but QEMU could not hand the VM over; what is on them there "
                                   "is of no use any more")  # fmt: skip

    def migrate(self, uri: str) -> None:
        """Make QEMU begin to migrate RAM and devices to `uri`, which is an address for QEMU."""
        self._qmp.execute("migrate", {"uri": uri})

    def close(self) -> None:
        """Cancel a migration that would go on without its disks, and restore the capabilities."""
        if not self._is_prepared or self.is_in_doubt:
            return
        self._is_prepared = False
        if self._status is not None and self._status not in OVER:
            self._cancel()
        changed, self._changed = self._changed, []
        set_capabilities(self._qmp, changed, state=False)
        self._marks.start_removing(marks.VM, *(f"{marks.CAPABILITY}{name}" for name in changed))

    def _cancel(self) -> None:
        """Cancel QEMU's migration, and return when the guest goes on here."""
        if self._status not in OVER:
            self._qmp.execute("migrate_cancel")
            self._await_one_of(*OVER, wait=CANCEL_SECONDS)
        if self._status != "completed":
            self._await_guest_running()
            logger.warning("%s: QEMU's migration is %s; the guest goes on here", self._qmp.device, self._status)

    def _await_guest_running(self) -> None:
        """Return when the guest goes on, if it ran before. QEMU continues it by itself; if not, this does."""
        if not self._was_running:
            return
        with contextlib.suppress(qmp.QmpTimeout):
            self._qmp.wait_for(lambda: self._guest.is_running or None, "the guest to go on", wait=CANCEL_SECONDS)
            return
        if self._qmp.execute("query-status")["status"] == "finish-migrate":
            self._qmp.execute("cont")

    def _await_one_of(self, *wanted: str, wait: float | None = None) -> str:
        """Wait for one of these statuses of QEMU's migration."""
        status = self._qmp.wait_for(
            lambda: self._status if self._status in wanted else None,
            f"QEMU's migration to be {wanted[0]}",
            wait=self._wait if wait is None else wait,
        )
        assert status is not None
        return status

    def _over_error(self, doing: str) -> errors.DeviceError:
        """Return the error for a migration of QEMU's that has ended, with its reason."""
        reason = ""
        with contextlib.suppress(errors.DeviceError):
            reason = self._qmp.execute("query-migrate").get("error-desc", "")
        where = "the VM runs at its target" if self._status == "completed" else "the guest goes on here"
        cause = f"QEMU's migration is {self._status}{reason and f' ({reason})'}; {where}"
        return errors.DeviceError(doing, device=self._qmp.device, cause=cause)


IN_DOUBT = (
    "{0}: QEMU was told to hand the VM over, and whether it did is not known ({1}): look at the target's QEMU. If "
    "it has the VM (query-status: running), end this one; if not, end that one, and then: blkmig cleanup --force {0}"
)


def set_capabilities(connection: qmp.QmpConnection, names: list[str], *, state: bool) -> None:
    """Switch migration capabilities on or off."""
    if names:
        listed = [{"capability": name, "state": state} for name in names]
        connection.execute("migrate-set-capabilities", {"capabilities": listed})
