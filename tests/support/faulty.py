# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that fail, and whether anything of a migration is left on one."""

from __future__ import annotations

import errno

import blkmig
from blkmig import _core, errors


class FaultyDisk(blkmig.MemoryBackend):
    """A disk that fails to read, write or flush at one offset."""

    def __init__(self, content: bytes, *, reads: int = -1, writes: int = -1, flushes: bool = False) -> None:
        super().__init__(bytearray(content), name="d")
        self.bad_read, self.bad_write, self.bad_flush = reads, writes, flushes

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        self._fail_to_read(offset, nbytes)
        return super().read_block(blk, offset, nbytes)

    def read_extents(self, blk: _core.BlockBuffer, extents: list[tuple[int, int]]) -> None:
        for offset, nbytes in extents:
            self._fail_to_read(offset, nbytes)
        super().read_extents(blk, extents)

    def _fail_to_read(self, offset: int, nbytes: int) -> None:
        if offset == self.bad_read:
            cause = OSError(errno.EIO, "Input/output error")
            raise errors.DeviceError("cannot read", device="d", cause=cause, offset=offset, nbytes=nbytes) from cause

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        if offset == self.bad_write:
            cause = OSError(errno.ENOSPC, "No space left on device")
            raise errors.DeviceError("cannot write", device="d", cause=cause, offset=offset, nbytes=nbytes) from cause
        super().write_block(blk, offset, nbytes)

    def flush(self) -> None:
        if self.bad_flush:
            raise errors.DeviceError("cannot flush", device="d", cause=OSError(errno.EIO, "Input/output error"))


def is_free(disk: blkmig.MemoryBackend) -> bool:
    """Return whether nothing of a migration is left on the disk."""
    with disk.block_use("a test"):
        disk.pwrite(b"free", 0)
    return not disk.trackers
