# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a running QEMU, or of a ``qemu-storage-daemon``, over QMP and NBD; QEMU 5.2 or later."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import errors, paths, units
from ..disk import names
from . import address, qmp, recovery
from .address import QemuAddress, is_qemu_address
from .qemudisk import QemuBackend
from .session import PauseMode, QemuSession

GREETING_SECONDS = 5.0
"""Seconds to wait for a monitor's greeting; a monitor that is silent for longer serves another client."""

__all__ = ["QemuAddress", "QemuBackend", "QemuSession", "cleanup", "is_qemu_address", "open_qemu"]


def open_qemu(
    text: str,
    *,
    name: str | None = None,
    force: bool = False,
    switchover: PauseMode = "auto",
    switchover_timeout: float = 3600.0,
    return_path: bool = True,
    connect_timeout: float = GREETING_SECONDS,
    timeout: float = 60.0,
) -> list[QemuBackend]:
    """Open the disks that ``qemu:PATH[,device=ID][,node=NAME][,nbd=URI][,export=ID]`` names, else all writable ones.

    A raw image in the page cache of this machine is read from its file; other disks are read by QEMU, over NBD. With
    ``,read=nbd`` QEMU reads all of them.

    `name` is the disk's name on the wire, if `text` names one disk. `force` allows disks in iothreads even if their
    QEMU aborts when blkmig is killed. ``switchover="pause-before"`` takes part in a migration of the whole VM, which
    somebody starts while the disks are sent: ``disks[0].session.when_pre_switchover`` then tells when the last pass is
    due. Without `return_path` that migration does not wait until its target confirms that it has the VM; a one-way
    channel needs that. QEMU has `connect_timeout` seconds for its greeting, and `timeout` seconds for each command.
    Whoever opens the disks closes all of them.

    Raises :class:`~blkmig.errors.DeviceError`, and :class:`~blkmig.errors.ParameterError` for a wrong `text`. After an
    error nothing stays open, and nothing stays behind in QEMU.
    """
    [disks] = open_together(
        [(name, text)],
        force=force,
        switchover=switchover,
        switchover_timeout=switchover_timeout,
        return_path=return_path,
        connect_timeout=connect_timeout,
        timeout=timeout,
    )
    return disks


def open_together(
    named: Sequence[tuple[str | None, str]],
    *,
    force: bool = False,
    switchover: PauseMode = "auto",
    switchover_timeout: float = 3600.0,
    return_path: bool = True,
    connect_timeout: float = GREETING_SECONDS,
    timeout: float = 60.0,
) -> list[list[QemuBackend]]:
    """Open the disks of several (name, address) pairs of one monitor, in one session; return the disks of each pair.

    An address that names no disk means all writable disks that no other address names. Else see :func:`open_qemu`.
    """
    addresses = [address.parse(text) for _, text in named]
    where = address.merge(addresses)
    with errors.failing("cannot be opened", device=f"qemu:{where.path}"):  # of this process: no descriptors, no threads
        shared = QemuSession(
            where,
            force=force,
            switchover=switchover,
            switchover_timeout=switchover_timeout,
            return_path=return_path,
            connect_timeout=connect_timeout,
            timeout=timeout,
        )
    disks = [QemuBackend(shared, number) for number in range(len(shared.disks))]
    try:
        shares = _share_out(disks, addresses)
        for (name, text), share in zip(named, shares, strict=True):
            _name(share, name, text)
    except BaseException:
        for disk in disks:
            disk.close()
        raise
    return shares


def _share_out(disks: list[QemuBackend], addresses: list[QemuAddress]) -> list[list[QemuBackend]]:
    """Return the disks of each address. Raises :class:`~blkmig.errors.ParameterError` if two name one disk."""
    shares: list[list[QemuBackend]] = [[disk for disk in disks if disk.is_named_by(where)] for where in addresses]
    taken = [disk.name for share in shares for disk in share]
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice is not None:
        raise errors.ParameterError(f"{addresses[0].path!r}: two sources name the disk {twice}")
    for where, share in zip(addresses, shares, strict=True):
        if where.means_all:
            share += [disk for disk in disks if not any(disk in other for other in shares)]
    return shares


def cleanup(
    path: str,
    *,
    force: bool = False,
    connect_timeout: float = GREETING_SECONDS,
    timeout: float = 60.0,
    say: Callable[[str], None] | None = None,
) -> list[str]:
    """Bring the QEMU at the QMP socket `path` (also ``qemu:PATH``) back to work after a blkmig that was killed.

    Whatever that blkmig has left is removed. A migration of QEMU's own in which it took part is cancelled, capabilities
    and limits are restored, and writers that it held go on. What belongs to a blkmig that is running stays. Returns a
    line for each thing that was done; `say` gets each line at once.

    A guest whose disks may have moved stays stopped, and this raises :class:`~blkmig.errors.InDoubt`, unless `force` is
    said.
    """
    units.check_flags(force=force)
    path = paths.check("the QMP socket", path)
    where = address.parse(path) if is_qemu_address(path) else QemuAddress(path=path)
    connection = qmp.QmpConnection(where.path, connect_timeout=connect_timeout, timeout=timeout)
    done: list[str] = []

    def tell(what: str) -> None:
        done.append(what)
        if say is not None:
            say(what)

    try:
        recovery.Recovery(connection, tell, force=force).run()
    finally:
        connection.close()
    return done


def _name(disks: list[QemuBackend], name: str | None, text: str) -> None:
    if not disks:
        raise errors.ParameterError(f"{text!r}: all of its disks are named by other sources")
    if name is not None:
        if len(disks) != 1:
            listed = ", ".join(disk.name for disk in disks)
            raise errors.ParameterError(f"one name, {name!r}, for {len(disks)} disks ({listed}): choose, with device=")
        disks[0].name = name
    for disk in disks:
        names.check_name(disk.name)
