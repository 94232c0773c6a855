# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks a running QEMU has, what they are called, and what would make it unsafe to touch them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ... import errors
from . import address, graph, objects, qmp

Json = Mapping[str, Any]

OLDEST = "block-export-add"
"""The command that everything rests on: QEMU 5.2. What is older has ``migrate -b`` itself."""

SERVER_FIRST = (9, 0)
"""Before this version QEMU aborts when an NBD client goes away while the node runs in an iothread."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QemuDisk:
    """One disk, as QEMU names it."""

    name: str
    """On the wire: the -drive's or the device's id, else the node's name."""

    node: str
    """The block node that blkmig tracks and reads."""

    size: int
    is_read_only: bool
    device: str = ""
    """The -drive's id, "" if it has none."""

    qdev: str = ""
    """The guest device's id or QOM path, "" if there is none."""

    root: str = ""
    """The node that the guest device stands on: `node`, or a filter above it."""


def check_version(connection: qmp.QmpConnection) -> frozenset[str]:
    """Return the names of QEMU's commands; raise :class:`~blkmig.errors.DeviceError` if it is too old."""
    commands = frozenset(command["name"] for command in connection.execute("query-commands"))
    if OLDEST not in commands:
        version = ".".join(map(str, connection.version))
        cause = f"it is QEMU {version}, and 5.2 is needed; an older one can send its disks itself: migrate -b"
        raise errors.DeviceError("cannot be driven", device=connection.device, cause=cause)
    return commands


def find_disks(connection: qmp.QmpConnection, facts: graph.BlockGraph, where: address.QemuAddress) -> list[QemuDisk]:
    """Return the disks that `where` names, or all writable ones.

    Of a VM these are the disks of ``query-block`` that have a medium; of a storage daemon the nodes that no other node
    stands on. Raises :class:`~blkmig.errors.DeviceError` if one is not there, or if there is none.
    """
    disks = [*_guest_disks(connection, facts)] or [_bare_disk(facts, node) for node in facts.tops()]
    if where.devices or where.nodes:
        chosen = [_by_device(connection, disks, name) for name in where.devices]
        chosen += [_by_node(connection, facts, disks, name) for name in where.nodes]
    else:
        chosen = [disk for disk in disks if not disk.is_read_only]
    if not chosen:
        raise errors.DeviceError("has no disk to send", device=connection.device, cause=_available(disks))
    return list(dict.fromkeys(chosen))


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
    return QemuDisk(name=node, node=node, size=entry["image"]["virtual-size"], is_read_only=entry["ro"])


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


def check_iothreads(connection: qmp.QmpConnection, disks: list[QemuDisk], *, force: bool) -> None:
    """Refuse disks in iothreads where that is dangerous, but for `force`.

    blkmig lets the server close first, always; but if it is killed, its sockets close from its side.
    And rarely such a QEMU, a 7.2.22, ended at ``stop`` while an export of ours was open; why is not known.
    """
    where = next((found for disk in disks if (found := _iothread_of(connection, disk)) is not None), None)
    if where is not None and connection.version < SERVER_FIRST and not force:
        version = ".".join(map(str, connection.version))
        cause = f"{where} runs in an iothread, and QEMU {version} aborts if blkmig is killed; --force does it anyway"
        raise errors.DeviceError("refused", device=connection.device, cause=cause)


def _iothread_of(connection: qmp.QmpConnection, disk: QemuDisk) -> str | None:
    if not disk.qdev:
        found = objects.list_objects(connection)
        return disk.name if any(entry["type"] == "child<iothread>" for entry in found) else None
    for path in _owners(connection, disk.qdev):
        for key in ("iothread", "iothread-vq-mapping"):
            if _property(connection, path, key):
                return disk.name
    return None


def _owners(connection: qmp.QmpConnection, qdev: str) -> list[str]:
    """Return the QOM paths of a device, of what it is a part of, and of its controller."""
    paths = [qdev, qdev.removesuffix("/virtio-backend")]
    bus = _property(connection, qdev, "parent_bus")
    while isinstance(bus, str) and bus.count("/") > 2:
        bus = bus.rpartition("/")[0]
        paths.append(bus)
    return paths


def _property(connection: qmp.QmpConnection, path: str, name: str) -> Any:
    try:
        return connection.execute("qom-get", {"path": path, "property": name})
    except qmp.QmpError:  # no such object, or no such property
        return None
