# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that are not raw: qcow2, vmdk, vhdx and the others, through a qemu-nbd that lives as long as the disk is open.

The format is always said, for the image and for a base that is named; nothing is guessed from bytes that a guest could
have written. (A qcow2 image that names its own backing file without that file's format makes QEMU guess; naming the
base avoids it.)
"""

from __future__ import annotations

import os
import pathlib
import threading

from .. import errors, paths, units
from ..disk import identity
from ..files import folder
from . import connection as nbd_connection
from . import export, exported, qcow2, qemuimg, qemunbd


class ImageBackend(exported.ExportedDisk):
    """The disk in an image file of any format that QEMU knows.

    `format`, and `base_format` if a `base` is named, are QEMU's names. `base` replaces the backing file that the image
    names. What the image holds on top of its backing files is what `next_allocated` tells. With `create_size`, a
    missing image is made: on top of `base` if there is one, and then 0 means as large as that. A new qcow2 image
    without a base can be resized. With `is_placeholder` the new image takes the place of the empty file at `path`.
    Other parameters are those of :class:`~.file.FileBackend`.

    Needs qemu-nbd, and qemu-img to make images. Opening raises :class:`~blkmig.errors.DeviceBusy` if a QEMU
    uses the image, :class:`~blkmig.errors.FormatError` if it is of another format.
    """

    size_unit = qemuimg.SECTOR

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: str,
        name: str | None = None,
        base: str | os.PathLike[str] | None = None,
        base_format: str = "raw",
        read_only: bool = False,
        writable: bool = True,
        create_size: int | None = None,
        direct: bool = False,
        locking: bool = True,
        is_placeholder: bool = False,
    ) -> None:
        units.check_flags(read_only=read_only, writable=writable, direct=direct, locking=locking)
        create_size = None if create_size is None else units.place("create_size", create_size)
        self._path = pathlib.Path(paths.check("the path of an image", path))
        if base is not None:
            paths.check("the path of a base", base)
        self._format = format
        self._direct = direct
        name = self._path.stem if name is None else name
        self._is_new = create_size is not None and (is_placeholder or not os.path.lexists(path))
        if self._is_new:
            qemuimg.create_image(
                self._path,
                create_size or 0,
                format=format,
                device=name,
                base=base,
                base_format=base_format,
                is_placeholder=is_placeholder,
            )
        self._options = qemuimg.image_options(self._path, format=format, locking=locking)
        if base is not None:
            backing = qemuimg.image_options(pathlib.Path(base), format=base_format, locking=locking)
            self._options |= {f"backing.{key}": value for key, value in backing.items()}
        layers = [self._path] if base is None else [self._path, pathlib.Path(base)]
        self._is_tracked = writable and not read_only
        with errors.failing("cannot be opened", device=name):
            self.files = tuple(identity.KnownFile.of(layer, is_tracked=self._is_tracked) for layer in layers)
        self._resizing = threading.Lock()  # held while the server is another one, and while it flushes for `drain`
        self._server: qemunbd.QemuNbd | None = None
        super().__init__(name, read_only=read_only, writable=writable)
        self.is_growable = self._is_new and format == "qcow2" and base is None
        self._image_size = self.size
        for file in self.files:
            qcow2.warn_of_marks(file.path, device=name)

    def _open(self) -> export.Export:
        """Start a server and connect to it. One that was there, whose client has gone after a cancel, ends before."""
        self._close_server(check=False)
        with self.failing("cannot be opened"):  # no descriptors, no processes, no room for the socket
            server = qemunbd.QemuNbd(self._options, device=self.name, writable=self._writable, direct=self._direct)
        with server.connecting() as uri:
            opened = self._connect(uri, read_piece=nbd_connection.QEMU_READ_PIECE)
        self._server = server
        # Backing files that the image itself names are known to QEMU alone.
        known = {file.key for file in self.files}
        found = server.open_files(is_tracked=self._is_tracked)
        self.files = (*self.files, *(file for file in found if file.key not in known))
        return opened

    def resize(self, size: int) -> None:
        """Give a new image another size. It grows by leaps and is cut to size by `flush`."""
        self.check_open()
        size = units.place("size", size)
        if not self.is_growable or self.trackers:
            super().resize(size)
        if size > self._image_size:
            self._resize_image(max(size, 2 * self._image_size))
        self.size = size

    def _resize_image(self, size: int) -> None:
        self._export.finish_writes()
        with self._resizing:
            self._export.connection.close()
            self._close_server()
            qemuimg.resize_image(self._path, size, format=self._format, device=self.name)
            self._export = self._open()
        self._image_size = self._export.size

    def flush_drained(self) -> None:
        """Let the server flush; one that was closed for another one has flushed."""
        with self._resizing:
            super().flush_drained()

    def flush(self) -> None:
        """Wait for the disk, and for the directory entry of a new image."""
        if self.is_growable and self._image_size >= self.size + qemuimg.SECTOR:
            self._resize_image(self.size)
        super().flush()
        if self._is_new:
            with self.failing("cannot flush"):
                folder.sync_folder(self._path.parent)

    def _close(self) -> None:
        super()._close()
        if self._passages.is_foreign:
            return
        self._close_server(check=not self._cancelled)

    def _close_server(self, *, check: bool = True) -> None:
        """End the server in good order; without `check`, as after a cancel, also one that does not come to its end."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close(check=check)
