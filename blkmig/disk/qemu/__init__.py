# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a running QEMU, or of a ``qemu-storage-daemon``, over QMP and NBD; QEMU 5.2 or later."""

from __future__ import annotations

import logging

from ... import errors
from .. import backend
from . import address, leftovers, qmp
from .address import QemuAddress, is_qemu_address
from .qemudisk import QemuBackend
from .session import QemuSession, Switchover

logger = logging.getLogger(__name__)

__all__ = ["QemuAddress", "QemuBackend", "QemuSession", "cleanup", "is_qemu_address", "open_qemu"]


def open_qemu(
    text: str,
    *,
    name: str | None = None,
    force: bool = False,
    switchover: Switchover = "auto",
    switchover_timeout: float = 3600.0,
    timeout: float = 60.0,
) -> list[QemuBackend]:
    """Open the disks that ``qemu:PATH[,device=ID][,node=NAME][,nbd=URI][,export=ID]`` names, else all writable ones.

    A raw image in the page cache of this machine is read from its file, the others by QEMU, over NBD; ``,read=nbd`` has
    QEMU read all of them.

    `name` is what the wire calls the disk, if it is one. `force` uses disks in iothreads also where QEMU aborts if
    blkmig is killed. ``switchover="pause-before"`` takes part in a migration of the whole VM, which somebody starts
    while the disks are being sent: then ``disks[0].session.when_pre_switchover`` tells when the last pass is due.
    `timeout` is how many seconds QEMU may take for a command. Whoever opens them closes all of them.

    Raises :class:`~blkmig.errors.DeviceError`, and :class:`~blkmig.errors.ParameterError` for a wrong `text`; then
    nothing stays open and nothing stays behind in QEMU.
    """
    shared = QemuSession(
        address.parse(text), force=force, switchover=switchover, switchover_timeout=switchover_timeout, timeout=timeout
    )
    disks = [QemuBackend(shared, number) for number in range(len(shared.disks))]
    try:
        _name(disks, name)
    except BaseException:
        for disk in disks:
            disk.close()
        raise
    return disks


def cleanup(path: str, *, timeout: float = 60.0) -> list[str]:
    """Remove what a killed blkmig left in the QEMU at the QMP socket `path` (also ``qemu:PATH``); return what it was.

    What belongs to a blkmig that is running stays. A guest that was stopped for the last pass stays stopped: only its
    owner knows whether it has moved.
    """
    where = address.parse(path) if is_qemu_address(path) else QemuAddress(path=path)
    connection = qmp.QmpConnection(where.path, timeout=timeout)
    try:
        removed = leftovers.remove(connection)
        if leftovers.is_guest_stopped(connection):
            logger.warning("%s: the guest is stopped; unless its disks have moved: cont", connection.device)
        return removed
    finally:
        connection.close()


def _name(disks: list[QemuBackend], name: str | None) -> None:
    if name is not None:
        if len(disks) != 1:
            listed = ", ".join(disk.name for disk in disks)
            raise errors.ParameterError(f"one name, {name!r}, for {len(disks)} disks ({listed}): choose, with device=")
        disks[0].name = name
    for disk in disks:
        backend.check_name(disk.name)
