# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's NBD server. A QEMU can have one: either blkmig starts it, or somebody else has started it."""

from __future__ import annotations

import pathlib
from typing import Any

from .. import errors
from . import qmp

SOCKET_SUFFIX = ".nbd"
MAX_SOCKET_PATH = 107

SERVER_RUNS = (
    "QEMU's NBD server is running already, and QEMU does not tell where: name it, with nbd=unix:PATH or nbd=URI"
)


def start(connection: qmp.QmpConnection, where: dict[str, Any], *, is_named: bool) -> bool:
    """Start the server at QMP's address `where`, and return True.

    If a server is running already, and the user has said where (`is_named`), return False. If the user has not said
    where, or if QEMU cannot start one, raise :class:`~blkmig.errors.DeviceError`.
    """
    try:
        connection.execute("nbd-server-start", {"addr": where, "max-connections": 0})
    except qmp.QmpError as error:
        if "already running" not in error.text:
            cause = f"{error.text}; name a place where QEMU may create a socket, with nbd=unix:PATH"
            raise errors.DeviceError("start the NBD server", device=connection.device, cause=cause) from error
        if not is_named:
            raise errors.DeviceError("start the NBD server", device=connection.device, cause=SERVER_RUNS) from error
        return False
    return True


def default_socket(qmp_path: str, prefix: str) -> str:
    """Return the default socket of the NBD server: beside the QMP socket, for the same users."""
    path = str(pathlib.Path(f"{qmp_path}.{prefix.rstrip('-')}{SOCKET_SUFFIX}").absolute())
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise errors.ParameterError(f"{path} is too long for a socket: name a shorter one, with nbd=unix:PATH")
    return path


def stop_if_idle(connection: qmp.QmpConnection) -> None:
    """Stop the NBD server, unless somebody else has added an export to it meanwhile."""
    if not any(export["type"] == "nbd" for export in connection.execute("query-block-exports")):
        with qmp.ignoring_missing():
            connection.execute("nbd-server-stop")
