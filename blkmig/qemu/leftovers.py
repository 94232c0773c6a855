# SPDX-License-Identifier: GPL-2.0-or-later
"""Removing what a killed blkmig left in QEMU and nobody needs: exports, bitmaps, throttles, the NBD server.

A run that is alive holds a connection to its exports, and QEMU refuses to delete an export that is in use. So a run
whose exports can be deleted is dead, and its bitmaps are removed, too. Other leftovers, such as a guest that is
stopped, are repaired only if the user asks for it: see `recovery.py`.
"""

from __future__ import annotations

import dataclasses
import glob
import pathlib
import socket
from collections.abc import Iterator

from .. import errors, logs
from . import marks, objects, qmp, server, throttle

logger = logs.Logger(__name__)


@dataclasses.dataclass(slots=True)
class Leftovers:
    """The leftovers that `remove` has found."""

    removed: list[str]
    """What was removed, in words."""

    marks: dict[str, list[str]]
    """The marks of dead runs, by run. They are still there."""

    is_alive: bool
    """Whether a run is alive; what belongs to it stays."""


def remove(connection: qmp.QmpConnection) -> Leftovers:
    """Remove what dead runs left, without touching the guest; return what was removed, and the marks of those runs."""
    removed, alive = [], set()
    for export in connection.execute("query-block-exports"):
        name = export["id"]
        if name.startswith(objects.PREFIX):
            try:
                objects.delete_export(connection, name, mode="safe")
                removed.append(f"export {name}")
            except qmp.QmpError as error:
                logger.info("%s is in use: %s", name, error)
                alive.add(run_of(name))
    for node, name in _bitmaps(connection):
        if run_of(name) not in alive:
            with qmp.ignoring_missing():
                connection.execute("block-dirty-bitmap-remove", {"node": node, "name": name})
                removed.append(f"bitmap {name} of node {node}")
    listed = objects.list_objects(connection)
    for name in (entry["name"] for entry in listed):
        if throttle.is_kept_in(name) and run_of(name) not in alive:
            removed += _restore_limits(connection, name)
    if not alive:
        removed += _remove_server(connection)
    for what in removed:
        logger.info("%s: removed the %s that a killed blkmig left", connection.device, what)
    dead = {run: found for run, found in marks.read(listed).items() if run not in alive}
    return Leftovers(removed, dead, is_alive=bool(alive))


def refuse_unfinished(connection: qmp.QmpConnection, found: Leftovers, *, is_vm: bool) -> None:
    """Raise :class:`~blkmig.errors.DeviceError` if QEMU is migrating, or if a dead run left it in an unusual state.

    The other marks of dead runs are removed: nobody was held when those runs were killed.
    """
    clean_up = f"first: blkmig cleanup {connection.device}"
    for run, left in found.marks.items():
        is_held = marks.HELD in left or marks.MOVED in left
        if is_held or marks.VM in left:
            what = "with the writers held" if is_held else "while it took part in QEMU's own migration"
            cause = f"a blkmig was killed, or ended in doubt, {what}; {clean_up}"
            raise errors.DeviceError("is not as it should be", device=connection.device, cause=cause)
        for mark in left:
            with qmp.ignoring_missing():
                connection.execute("object-del", {"id": f"{run}-{mark}"})
    if not is_vm:
        return
    status = connection.execute("query-migrate").get("status", "none")
    if status not in ("none", "completed", "failed", "cancelled"):
        cause = f"QEMU's own migration is {status}: let it end or cancel it (migrate_cancel), or, if a blkmig that "
        cause += f"took part in it was killed, {clean_up}; --switchover=pause-before must be said before migrate is"
        raise errors.DeviceError("is migrating already", device=connection.device, cause=cause)
    status = connection.execute("query-status")["status"]
    if status in NOT_A_SOURCE:
        cause = f"its status is {status}: {NOT_A_SOURCE[status]}"
        raise errors.DeviceError("cannot be a source", device=connection.device, cause=cause)


NOT_A_SOURCE = {
    "finish-migrate": "the end of a migration of its own was never said; blkmig cleanup may help",
    "postmigrate": "the VM has moved to another QEMU, which has its disks",
    "inmigrate": "it waits for a VM to come",
}


def run_of(name: str) -> str:
    """Return the prefix of the run that gave `name`: ``blkmig-<random>``."""
    return "-".join(name.split("-", 2)[:2])


def _bitmaps(connection: qmp.QmpConnection) -> Iterator[tuple[str, str]]:
    for node in connection.execute("query-named-block-nodes", {"flat": True}):
        for bitmap in node.get("dirty-bitmaps", ()):
            if bitmap.get("name", "").startswith(objects.PREFIX):
                yield node["node-name"], bitmap["name"]


def _restore_limits(connection: qmp.QmpConnection, kept_in: str) -> list[str]:
    """Restore the user's limits of writers, unless the disk or the throttle group is gone."""
    try:
        throttle.restore(connection, kept_in)
    except qmp.QmpError as error:
        logger.warning("the limits in %s could not be put back: %s", kept_in, error)
    with qmp.ignoring_missing():
        connection.execute("object-del", {"id": kept_in})
    return [f"throttle {kept_in}"]


def _remove_server(connection: qmp.QmpConnection) -> list[str]:
    """Stop an NBD server that blkmig started, and remove dead sockets. Its socket stands beside the QMP socket."""
    removed = []
    pattern = f"{glob.escape(str(pathlib.Path(connection.path).absolute()))}.{objects.PREFIX}*{server.SOCKET_SUFFIX}"
    for path in map(pathlib.Path, glob.glob(pattern)):  # noqa: PTH207 - the pattern is a whole path
        if _is_listening(path):
            server.stop_if_idle(connection)
            removed.append(f"NBD server at {path}")
        path.unlink(missing_ok=True)
    return removed


def _is_listening(path: pathlib.Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
