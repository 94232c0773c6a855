# SPDX-License-Identifier: GPL-2.0-or-later
"""How a session's disks are read: through a read-only export of each and a connection to it, or from its image's
file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..nbd import connection as nbd_connection
from ..nbd import extents
from . import address, discover, graph, imagefile, objects

CONTEXTS = (nbd_connection.BASE_ALLOCATION, nbd_connection.ALLOCATION_DEPTH)


class Readers:
    """The readers of `disks`, by the disks' numbers. Under the session's lock."""

    def __init__(self, own: objects.OwnObjects, disks: Sequence[discover.QemuDisk]) -> None:
        self._own = own
        self._disks = disks
        self.names = [f"{own.prefix}d{number}" for number in range(len(disks))]
        """Of the exports."""

        self.connections: list[nbd_connection.NbdConnection] = []
        self.extents: list[extents.Extents] = []
        self.files: list[imagefile.ImageFile | None] = []
        """The files that disks are read from; None for a disk that is read through its export."""

    def open_files(self, where: address.QemuAddress, facts: graph.BlockGraph) -> None:
        """Open the images' files that can be read without QEMU, unless the user wants QEMU to read all of them."""
        if where.read != "auto":
            self.files = [None] * len(self._disks)
            return
        for file in imagefile.open_files(where.path, facts, self._disks):
            self.files.append(file)  # one by one: what is open is closed if the next one fails

    def connect(self, server: str | None) -> None:
        """Export the disks on the NBD server at that URI, all of them together, and connect to the exports."""
        self._own.start_server(server)
        for adding in [self._own.start_adding_export(*each, **OPTIONS) for each in self._exports()]:
            adding.result()
        for name, disk in zip(self.names, self._disks, strict=True):
            connection = self._own.connect(name, disk.name, CONTEXTS)
            self.connections.append(connection)
            self.extents.append(extents.Extents(connection))

    def _exports(self) -> list[tuple[str, str]]:
        """Return name and node of each export."""
        return [(name, disk.node) for name, disk in zip(self.names, self._disks, strict=True)]

    def renew(self) -> None:
        """Make the readers usable again after a cancel. The server closes first, as always."""
        for (name, node), connection in zip(self._exports(), self.connections, strict=True):
            if not connection.renew():
                self._own.remove_export(name)
                connection.close()
                self._own.add_export(name, node, **OPTIONS)
                connection.reconnect()

    def close(self) -> None:
        """Close blkmig's ends of the connections, after QEMU has closed the exports."""
        for connection in self.connections:
            connection.close()
        for file in self.files:
            if file is not None:
                file.close()


OPTIONS: dict[str, Any] = {"allocation-depth": True}
"""An option of an export: the server also tells which blocks stand in the top image."""
