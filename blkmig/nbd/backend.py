# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk behind an NBD server that is already running."""

from __future__ import annotations

from typing import Any

from . import export, exported
from . import uri as nbd_uri
from .connection import NbdConnection as NbdConnection


class NbdBackend(exported.ExportedDisk):
    """The disk at an NBD `uri`: nbd://, nbds://, nbd+unix:// or nbds+unix://.

    `name` is the disk's name on the wire, by default the export's name. `read_only` is a disk whose guest cannot write
    it; a migration skips it. With ``writable=False`` nobody writes the disk through this object; an export that the
    server offers read-only can only be opened so. Other parameters are those of :class:`~.connection.NbdConnection`.

    Writes of this process through `pwrite` are tracked, as with any local disk. Writes by other clients of the server
    are not seen. Whether the image behind the export is locked is the server's matter.
    """

    def __init__(
        self, uri: str, *, name: str | None = None, read_only: bool = False, writable: bool = True, **connect: Any
    ) -> None:
        self.uri = uri
        self._options = connect
        super().__init__(default_name(uri) if name is None else name, read_only=read_only, writable=writable)

    def _open(self) -> export.Export:
        return self._connect(self.uri, **self._options)


def default_name(uri: str) -> str:
    """Return the default name of the disk at `uri`: the last part of the export's name, or "nbd" if that is empty."""
    export = nbd_uri.export_of(uri)
    return export.rpartition("/")[2] or "nbd"
