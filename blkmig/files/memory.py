# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk in memory: any writable buffer, such as a numpy array, an mmap or a bytearray.

The buffer stays the caller's, who may read it at any time; who writes it without :meth:`~.local.LocalBackend.pwrite`
says so with ``mark_dirty`` or ``writing``. It cannot be resized while the disk is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _core, errors, units
from ..disk import backend, local, storage

if TYPE_CHECKING:
    from typing_extensions import Buffer


_NEGATIVE = "a disk has no negative offsets"


class MemoryBackend(local.LocalBackend):
    """A disk whose bytes are those of `buffer`, C-contiguous and writable, whatever its items and dimensions are.

    Raises :class:`~blkmig.errors.ParameterError` for any other buffer, :class:`~blkmig.errors.WrongType` for objects.
    """

    flushes_beside = True

    def __init__(self, buffer: Buffer, *, name: str) -> None:
        view = local.bytes_of(buffer)
        if view.readonly:
            raise errors.ParameterError(f"disk {name!r} needs a writable buffer, this one is read-only")
        super().__init__(name, view.nbytes)
        self._buffer: Buffer | None = buffer
        self._view = view

    def byte_addresses(self) -> range:
        """Return where its bytes are in this process; nowhere if it has none, or is closed."""
        if self._buffer is None or not self.size:
            return range(0)
        import numpy as np

        start = np.frombuffer(self._view, np.uint8).ctypes.data
        return range(start, start + self.size)

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Copy a block out of the buffer."""
        self.check_open()
        if type(offset) is not int or type(nbytes) is not int:
            offset, nbytes = units.index(offset), units.index(nbytes)
        if offset < 0:
            raise errors.DeviceError("cannot read", device=self.name, cause=_NEGATIVE, offset=offset, nbytes=nbytes)
        count = max(0, min(nbytes, self.size - offset))
        try:
            blk.data[:count] = self._view[offset : offset + count]
        except ValueError:
            self.check_open()  # it was closed meanwhile
            raise
        return blk.filled(count)

    def open_reader(self, *, is_target: bool) -> storage.StorageReader:
        """Return a reader; memory has no storage behind it."""
        return storage.BackendReader(self)

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Copy a block into the buffer."""
        self.check_open()
        offset, nbytes = self.check_range("cannot write", offset, nbytes)
        self._view[offset : offset + nbytes] = blk.payload[:nbytes]

    def flush(self) -> None:
        """Flush the buffer if it can be, as an mmap or a numpy.memmap can; other memory has nothing to flush to."""
        self.check_open()
        flush = getattr(self._buffer, "flush", None)
        if flush is not None:
            with self.failing("cannot flush"):
                flush()

    def flush_drained(self) -> None:
        """Flush: nothing is put off."""
        self.flush()

    def _pread_into(self, view: memoryview, offset: int) -> None:
        view[:] = self._view[offset : offset + view.nbytes]

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self._view[offset : offset + view.nbytes] = view

    def _pwrite_zeroes(self, offset: int, nbytes: int) -> None:
        """Write zeros where there are none yet: private memory that was never touched stays unbacked."""
        for start in range(offset, offset + nbytes, _core.BLOCK_SIZE):
            part = self._view[start : min(start + _core.BLOCK_SIZE, offset + nbytes)]
            if not _core.buffer_is_zero(part):
                part[:] = backend.ZEROS[: part.nbytes]

    def _close(self) -> None:
        self._view.release()
        self._buffer = None
