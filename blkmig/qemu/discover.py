# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks a running QEMU has, what they are called, and what would make it unsafe to touch them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import errors, logs
from . import address, graph, objects, qmp

logger = logs.Logger(__name__)

Json = Mapping[str, Any]

OLDEST = "block-export-add"
"""The command that everything needs. QEMU has it since 5.2; an older QEMU can send its disks itself, by ``migrate
-b``."""

SERVER_FIRST = (9, 0)
"""Before this version QEMU aborts when an NBD client goes away while the node runs in an iothread."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QemuDisk:
    """One disk, as QEMU names it."""

    name: str
    """Its name on the wire: the id of the -drive or of the device, else the node's name."""

    node: str
    """The block node that blkmig tracks and reads."""

    size: int
    is_read_only: bool
    device: str = ""
    """The -drive's id, "" if it has none."""

    qdev: str = ""
    """The guest device's id or QOM path, "" if there is none."""

    root: str = ""
    """The node that the guest device stands on, or that the user named: `node`, or a filter above it."""


def check_version(connection: qmp.QmpConnection) -> frozenset[str]:
    """Return the names of QEMU's commands; raise :class:`~blkmig.errors.DeviceError` if it is too old."""
    commands = frozenset(command["name"] for command in connection.execute("query-commands"))
    if OLDEST not in commands:
        version = ".".join(map(str, connection.version))
        cause = f"it is QEMU {version}, and 5.2 is needed; an older one can send its disks itself: migrate -b"
        raise errors.DeviceError("cannot be driven", device=connection.device, cause=cause)
    return commands


def find_disks(connection: qmp.QmpConnection, facts: graph.BlockGraph, where: address.QemuAddress) -> list[QemuDisk]:
    """Return the disks that `where` names, read-only ones included, or all writable ones; the log names those left out.

    The disks of a VM are those of ``query-block`` that have a medium. The disks of a storage daemon are the nodes that
    no other node stands on. Raises :class:`~blkmig.errors.DeviceError` if a named disk does not exist, or if none is
    left.
    """
    disks = [*_guest_disks(connection, facts)] or [_bare_disk(facts, node) for node in facts.tops()]
    chosen = [_by_device(connection, disks, name) for name in where.devices]
    chosen += [_by_node(connection, facts, disks, name) for name in where.nodes]
    if where.means_all:
        for disk in disks:
            if not disk.is_read_only:
                chosen.append(disk)
            elif disk not in chosen:
                logger.warning(LEFT_OUT, connection.device, disk.name, _naming(disk))
    if not chosen:
        raise errors.DeviceError("has no disk to send", device=connection.device, cause=_available(disks))
    return list(dict.fromkeys(chosen))


LEFT_OUT = "%s: disk %r is read-only and not sent; it is if it is named, with %s"


def _naming(disk: QemuDisk) -> str:
    name = disk.device or _short_name(disk.qdev)
    return f"device={name}" if name else f"node={disk.node}"


def is_named(disk: QemuDisk, where: address.QemuAddress) -> bool:
    """Return whether `where` names this disk itself, and not only all disks."""
    devices, nodes = {disk.device, disk.qdev, _short_name(disk.qdev)}, {disk.root, disk.node}
    return not devices.isdisjoint(where.devices) or not nodes.isdisjoint(where.nodes)


def _guest_disks(connection: qmp.QmpConnection, facts: graph.BlockGraph) -> Iterator[QemuDisk]:
    for entry in connection.execute("query-block"):
        medium = entry.get("inserted")
        if medium is not None and medium.get("node-name") in facts.nodes:
            root, qdev, device = medium["node-name"], entry.get("qdev", ""), entry["device"]
            node = facts.below_filters(root)
            yield QemuDisk(
                name=device or _short_name(qdev) or node,
                node=node,
                size=medium["image"]["virtual-size"],
                is_read_only=medium["ro"],
                device=device,
                qdev=qdev,
                root=root,
            )


def _bare_disk(facts: graph.BlockGraph, top: str) -> QemuDisk:
    node = facts.below_filters(top)
    entry = facts.nodes[node]
    return QemuDisk(
        name=node, node=node, size=entry["image"]["virtual-size"], is_read_only=entry["ro"], root=top
    )


def _by_device(connection: qmp.QmpConnection, disks: list[QemuDisk], name: str) -> QemuDisk:
    for disk in disks:
        if name in (disk.device, disk.qdev, _short_name(disk.qdev)):
            return disk
    raise errors.DeviceError(f"has no device {name!r}", device=connection.device, cause=_available(disks))


def _by_node(
    connection: qmp.QmpConnection, facts: graph.BlockGraph, disks: list[QemuDisk], name: str
) -> QemuDisk:
    for disk in disks:
        if name in (disk.root, disk.node):
            return disk
    if name in facts.nodes:
        return _bare_disk(facts, name)
    raise errors.DeviceError(f"has no node {name!r}", device=connection.device, cause=_available(disks))


def _available(disks: list[QemuDisk]) -> str:
    listed = ", ".join(
        f"{disk.name} (node {disk.node}{', read-only' if disk.is_read_only else ''})" for disk in disks
    )
    return f"there are: {listed}" if listed else "it has no disks"


def _short_name(qdev: str) -> str:
    """Return the id in ``/machine/peripheral/ID/virtio-backend``, or the id itself; "" for a device without one."""
    parts = qdev.removesuffix("/virtio-backend").split("/")
    return "" if "peripheral-anon" in parts else parts[-1]


# -- iothreads -------------------------------------------------------------------------------------------------------


def check_iothreads(
    connection: qmp.QmpConnection, facts: graph.BlockGraph, disks: list[QemuDisk], *, force: bool
) -> None:
    """Refuse disks in iothreads if that is dangerous, unless `force` is said.

    blkmig always lets the server close first, but when it is killed, its own end of the sockets closes first. Besides,
    a QEMU 7.2.22 was seen to crash at ``stop``, rarely, while an export of blkmig was open. The reason is not known.
    """
    if force or connection.version >= SERVER_FIRST:
        return
    devices = list(_guest_disks(connection, facts))
    users = {disk: _users(facts, disk, devices) for disk in disks}
    in_iothreads = _in_iothreads(connection, {qdev for found in users.values() for qdev in found})
    may_be = [disk for disk in disks if not users[disk] and _is_exported(facts, disk)]
    has_iothreads = bool(may_be) and _has_iothreads(connection)
    for disk in disks:
        if not in_iothreads.isdisjoint(users[disk]) or (has_iothreads and disk in may_be):
            version = ".".join(map(str, connection.version))
            cause = f"{disk.name} runs in an iothread, and QEMU {version} aborts if blkmig is killed; "
            raise errors.DeviceError("refused", device=connection.device, cause=f"{cause}--force does it anyway")


def _users(facts: graph.BlockGraph, disk: QemuDisk, devices: list[QemuDisk]) -> list[str]:
    """Return the guest devices that stand on a disk's node: the node runs in the same thread as they do."""
    above = facts.ancestors(disk.node)
    users = [device.qdev for device in devices if device.qdev and device.root in above]
    return [*users, disk.qdev] if disk.qdev and disk.qdev not in users else users


def _is_exported(facts: graph.BlockGraph, disk: QemuDisk) -> bool:
    """Return whether exports, or users that QEMU does not tell of, stand on a disk's node: their thread is not
    known."""
    return not facts.knows_parents or bool(facts.exports_of(disk.node, but=objects.PREFIX))


def _has_iothreads(connection: qmp.QmpConnection) -> bool:
    return any(entry["type"] == "child<iothread>" for entry in objects.list_objects(connection))


def _in_iothreads(connection: qmp.QmpConnection, qdevs: set[str]) -> set[str]:
    """Return those guest devices that run in iothreads; QEMU is asked about all devices together."""
    buses = _properties(connection, [(qdev, "parent_bus") for qdev in qdevs])
    owners = {qdev: _owners(qdev, bus) for (qdev, _), bus in buses.items()}
    paths = {path for found in owners.values() for path in found}
    said = _properties(connection, [(path, key) for path in paths for key in ("iothread", "iothread-vq-mapping")])
    running = {path for (path, _), value in said.items() if value}
    return {qdev for qdev, found in owners.items() if not running.isdisjoint(found)}


def _owners(qdev: str, bus: Any) -> list[str]:
    """Return the QOM paths of a device, of the devices that it is a part of, and of its controller."""
    paths = [qdev, qdev.removesuffix("/virtio-backend")]
    while isinstance(bus, str) and bus.count("/") > 2:
        bus = bus.rpartition("/")[0]
        paths.append(bus)
    return paths


def _properties(connection: qmp.QmpConnection, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """Return the values of (path, property), None where there is no such object or property."""
    asked = [(key, connection.start("qom-get", {"path": key[0], "property": key[1]})) for key in wanted]
    values: dict[tuple[str, str], Any] = {}
    for key, command in asked:
        try:
            values[key] = command.result()
        except qmp.QmpError:
            values[key] = None
    return values
