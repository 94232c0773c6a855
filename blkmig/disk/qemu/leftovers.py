# SPDX-License-Identifier: GPL-2.0-or-later
"""Removing from QEMU what a killed blkmig left there: exports, bitmaps, throttles, the NBD server.

A run that is alive holds a connection to its exports, and QEMU refuses to delete an export that is in use. So whose
exports can be deleted is dead, and its bitmaps can go, too.
"""

from __future__ import annotations

import glob
import logging
import pathlib
import socket
from collections.abc import Iterator

from . import objects, qmp, throttle

logger = logging.getLogger(__name__)


def remove(connection: qmp.QmpConnection) -> list[str]:
    """Remove what dead runs left and return what it was, in words. What belongs to a run that is alive stays."""
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
            with objects.ignoring_missing():
                connection.execute("block-dirty-bitmap-remove", {"node": node, "name": name})
                removed.append(f"bitmap {name} of node {node}")
    for name in (entry["name"] for entry in objects.list_objects(connection)):
        if throttle.is_kept_in(name) and run_of(name) not in alive:
            removed += _restore_limits(connection, name)
    if not alive:
        removed += _remove_server(connection)
    for what in removed:
        logger.info("%s: removed the %s that a killed blkmig left", connection.device, what)
    return removed


def is_guest_stopped(connection: qmp.QmpConnection) -> bool:
    """Tell whether there is a guest that does not run because somebody has said ``stop``, as a last pass does."""
    try:
        return bool(connection.execute("query-status")["status"] == "paused")
    except qmp.QmpError:  # a storage daemon
        return False


def run_of(name: str) -> str:
    """Return the prefix of the run that gave `name`: ``blkmig-<random>``."""
    return "-".join(name.split("-", 2)[:2])


def _bitmaps(connection: qmp.QmpConnection) -> Iterator[tuple[str, str]]:
    for node in connection.execute("query-named-block-nodes", {"flat": True}):
        for bitmap in node.get("dirty-bitmaps", ()):
            if bitmap.get("name", "").startswith(objects.PREFIX):
                yield node["node-name"], bitmap["name"]


def _restore_limits(connection: qmp.QmpConnection, kept_in: str) -> list[str]:
    """Give writers the user's limits back; a disk or a group that is gone needs none."""
    try:
        throttle.restore(connection, kept_in)
    except qmp.QmpError as error:
        logger.warning("the limits in %s could not be put back: %s", kept_in, error)
    with objects.ignoring_missing():
        connection.execute("object-del", {"id": kept_in})
    return [f"throttle {kept_in}"]


def _remove_server(connection: qmp.QmpConnection) -> list[str]:
    """Stop an NBD server that blkmig started, which its socket beside the QMP socket tells, and remove dead sockets."""
    removed = []
    pattern = f"{glob.escape(str(pathlib.Path(connection.path).absolute()))}.{objects.PREFIX}*{objects.SOCKET_SUFFIX}"
    for path in map(pathlib.Path, glob.glob(pattern)):  # noqa: PTH207 - the pattern is a whole path
        if _is_listening(path):
            objects.stop_server_if_idle(connection)
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
