# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk whose bytes are those of an NBD export: what disks behind servers and images have in common.

As a source it is read by as many threads as there are buffers, directly into these. `inflight.py` and `export.py` say
how a target is written, and how zeros travel.
"""

from __future__ import annotations

import abc
import functools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from .. import _core, errors, units
from ..disk import dirty, local
from ..disk import extents as disk_extents
from . import connecting, export
from . import connection as nbd_connection

if TYPE_CHECKING:
    from typing_extensions import Buffer

Result = TypeVar("Result")

LOOK_SECONDS = 0.01
"""How often a user of a disk whose migration was cancelled looks whether it has let the disk go."""

USER_SECONDS = 30.0
"""How long it looks: who writes in the thread that drives the migration would wait for itself."""

CONTEXTS = (nbd_connection.BASE_ALLOCATION, nbd_connection.ALLOCATION_DEPTH)


class ExportedDisk(local.LocalBackend):
    """A disk that has an NBD export; a subclass says how to open it.

    Writes of this process through `pwrite` are tracked, as with any local disk. Writes by other clients of the server
    are not seen.
    """

    reads_in_parallel = True

    def __init__(self, name: str, *, read_only: bool, writable: bool) -> None:
        units.check_flags(writable=writable)
        super().__init__(name, 0, read_only=read_only)
        self._writable = writable and not read_only
        self._renewing = threading.Lock()
        self._export = self._open()
        self.size = self._export.size

    @abc.abstractmethod
    def _open(self) -> export.Export:
        """Open the export, for the first time or again; release first what belonged to one that is closed."""

    def _connect(self, uri: str, **options: Any) -> export.Export:
        """Connect to the export at `uri`. Raises DeviceError, also if the disk is to be written and the server forbids
        it."""
        connection = nbd_connection.NbdConnection(
            uri, device=self.name, contexts=CONTEXTS, is_cancelled=lambda: self._cancelled, **options
        )
        if self._writable and connection.is_read_only:
            connection.close()
            cause = f"the server offers it read-only [{uri}]"
            raise errors.DeviceError("cannot be written", device=self.name, cause=cause)
        return export.Export(connection)

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block; drops the GIL."""
        offset, nbytes = units.index(offset), units.index(nbytes)
        count = max(0, min(nbytes, self.size - offset))
        self._export.pread_into(blk.data[:count], offset)
        return blk.filled(count)

    def read_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Read extents, several at once."""
        self.check_open()
        self._export.pread_each(disk_extents.parts_inside(blk, extents, self.size))
        blk.gathered()

    def pread(self, offset: SupportsIndex, nbytes: SupportsIndex) -> bytes:
        """Read [offset, offset + nbytes), which must lie inside the disk. Blocks; after a cancel, see `_as_user`."""
        read = functools.partial(super().pread, offset, nbytes)
        return self._as_user(read, "cannot read", is_repeatable=True)

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self._export.pread_into(view, offset)

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Ask the server, in windows of up to 4 GiB."""
        return self._export.extents.next_data(units.index(offset))

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Ask a QEMU server what the top image of a chain holds itself."""
        return self._export.extents.next_allocated(units.index(offset), units.index(nbytes))

    def forget_extents(self) -> None:
        """Forget what the server has told, so that it is asked again."""
        self._export.extents.forget()

    # -- writing -----------------------------------------------------------------------------------------------------

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Start writing a block; its error comes with this call or a later one. Zero clusters are sent as zeros."""
        self._check_writable()
        offset, nbytes = self.check_range("cannot write", offset, nbytes)
        self._export.write_block(blk.payload, offset, nbytes)

    def write_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Write extents, several at once."""
        self._check_writable()
        for offset, nbytes in extents:
            self.check_range("cannot write", offset, nbytes)
        self._export.pwrite_each(disk_extents.parts(blk, extents))

    def pwrite(self, data: Buffer, offset: SupportsIndex) -> None:
        """Write all of `data`, as any local disk does. Blocks; after a cancel, see `_as_user`."""
        self._as_user(functools.partial(super().pwrite, data, offset), "cannot write")

    def pwrite_zeroes(self, offset: SupportsIndex, nbytes: SupportsIndex) -> None:
        """Make [offset, offset + nbytes) read as zeros, as any local disk does. Blocks, as `pwrite`."""
        self._as_user(functools.partial(super().pwrite_zeroes, offset, nbytes), "cannot write zeros")

    def _as_user(self, call: Callable[[], Result], doing: str, *, is_repeatable: bool = False) -> Result:
        """Do what some thread of this process wants, and no migration: the cancel of one ends only what waits for it.

        It shares the connection, so a request that is not sent by then waits until the migration tracks the disk no
        more, for `USER_SECONDS` at most. One that a server leaves without an answer for as long as a cancel has
        patience fails.
        """
        while True:
            self._await_cancelled_use(doing)
            try:
                return call()
            except errors.Cancelled as error:
                if not (is_repeatable or isinstance(error.__cause__, connecting.NotBegun)):
                    cause = "the server did not answer, and the migration that uses the connection was cancelled"
                    raise errors.DeviceError(doing, device=self.name, cause=cause) from error

    def _await_cancelled_use(self, doing: str) -> None:
        """Return when no migration uses the disk that was cancelled, with the disk ready for use."""
        deadline = time.monotonic() + USER_SECONDS
        while self._cancelled and not self._passages.is_foreign:
            self.check_open()
            if not self.trackers:
                with self._renewing:
                    if self._cancelled:
                        self._renew_connection()
            elif time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
            else:
                cause = f"its migration was cancelled, and is not over after {USER_SECONDS:g} s: leave its with first"
                raise errors.DeviceError(doing, device=self.name, cause=cause)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self._check_writable()
        self._export.pwrite(view, offset)

    def _pwrite_zeroes(self, offset: int, nbytes: int) -> None:
        self._check_writable()
        self._export.pwrite_zeroes(offset, nbytes)

    def create_dirty_bitmap(self, granularity: int) -> dirty.DirtyBitmap:
        """Start tracking, and forget what the server has told of its data: writes before this were not seen."""
        self._renew()
        bitmap = super().create_dirty_bitmap(granularity)
        self._export.extents.forget()
        return bitmap

    def _renew(self) -> None:
        """Make the disk usable again after a `cancel`."""
        with self._renewing:
            self._renew_connection()

    def _renew_connection(self) -> None:
        self._cancelled = False
        if not self._export.connection.renew():
            self.check_open()
            self._export.connection.close()
            self._export = self._open()

    def cancel(self) -> None:
        """End every wait for the server."""
        super().cancel()
        self._export.connection.cancel()

    def _mark(self, offset: int, nbytes: int) -> None:
        self._export.extents.forget()  # before the write is marked
        super()._mark(offset, nbytes)

    def rest(self) -> None:
        """Finish what is in flight, and free the copies."""
        self.check_open()
        self._export.rest()

    def flush(self) -> None:
        """Finish what is in flight, then let the server flush."""
        self.check_open()
        self._export.flush()

    @property
    def flushes_beside(self) -> bool:  # type: ignore[override]
        """Whether the server can flush."""
        return self._export.connection.can_flush

    def drain(self) -> None:
        """Finish what is in flight."""
        self.check_open()
        self._export.finish_writes()

    def flush_drained(self) -> None:
        """Let the server flush: requests of several threads may be in flight."""
        self.check_open()
        self._export.connection.flush()

    def _check_writable(self) -> None:
        self.check_open()
        if not self._writable:
            raise errors.DeviceError("cannot be written", device=self.name, cause="it was opened for reading only")

    def _close(self) -> None:
        self._export.connection.close()
