# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to a VM while its disks are sent. QEMU tells it by events, at once and without being asked."""

from __future__ import annotations

from .. import errors
from . import discover, qmp

STOPPING = ("STOP", "SUSPEND")
GOING_ON = ("RESUME", "WAKEUP")
OTHERS = ("SHUTDOWN", "DEVICE_DELETED")


class Guest:
    """Whether the guest runs, and what has happened to it and its devices since this object was made.

    The connection's thread sets the fields, by plain assignments; any thread may read them. A storage daemon has no
    guest: nothing runs, and nothing happens.
    """

    def __init__(self, connection: qmp.QmpConnection, *, is_vm: bool) -> None:
        self.is_running = False
        self._qmp = connection
        self._changes = 0
        self._shutdown: str | None = None
        self._unplugged: set[str] = set()
        if is_vm:
            connection.listen((*STOPPING, *GOING_ON, *OTHERS), self._heard)
            self._look()

    def _look(self) -> None:
        """Ask whether the guest runs; an event that comes meanwhile counts more than the answer."""
        before = self._changes
        is_running = bool(self._qmp.execute("query-status")["running"])
        if self._changes == before:
            self.is_running = is_running

    def _heard(self, event: qmp.Event) -> None:
        name, data = event["event"], event.get("data", {})
        if name in STOPPING or name in GOING_ON:
            self._changes += 1
            self.is_running = name in GOING_ON
        elif name == "SHUTDOWN":
            self._shutdown = str(data.get("reason", "unknown"))
        else:
            self._unplugged |= {str(data.get("path", "")), str(data.get("device", ""))} - {""}

    def check(self, disks: list[discover.QemuDisk]) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if QEMU has ended, or if the guest has lost one of `disks`."""
        if self._qmp.is_gone:
            raise self.gone_error("cannot be sent any more")
        for disk in disks:
            if self._unplugged and disk.qdev and self._is_unplugged(disk.qdev):
                cause = f"its device {disk.qdev} was unplugged; if node {disk.node} is still wanted, send that"
                raise errors.DeviceError("cannot be sent any more", device=disk.name, cause=cause)

    def gone_error(self, doing: str) -> qmp.QmpGone:
        """Return the error for a QEMU that has ended, with the reason if QEMU has told one."""
        if self._shutdown is None:
            return self._qmp.gone_error(doing)
        return qmp.QmpGone(doing, device=self._qmp.device, cause=f"QEMU has shut down ({self._shutdown})")

    def _is_unplugged(self, qdev: str) -> bool:
        """Return whether the device `qdev`, an id or a QOM path, was unplugged, or is a part of one that was."""
        path = qdev.split("/")
        return any("/".join(path[:end]) in self._unplugged for end in range(1, len(path) + 1))
