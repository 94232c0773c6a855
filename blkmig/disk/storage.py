# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a disk a second time, beside whoever sends or stores it, to compare it with another one.

The first reader takes what memory has. The second one shall find what the storage has, as far as the disk can do that.
"""

from __future__ import annotations

import abc
from typing import Protocol

from .. import _core


class StorageReader(abc.ABC):
    """A second way to read one disk, for one thread; several of them may be open. Errors are those of the disk."""

    why_not_storage: str = ""
    """Why what it reads need not come from the storage; "" where it does."""

    is_beside_writes: bool = False
    """Whether it may be used while another thread writes the disk through its backend."""

    @abc.abstractmethod
    def settle(self) -> None:
        """Return when all that was written before is on stable storage. Blocks."""

    @abc.abstractmethod
    def read(self, offset: int, nbytes: int) -> memoryview:
        """Return [offset, offset + nbytes), at most 1 MiB inside the disk; the next call takes it away. Blocks."""

    def next_data(self, offset: int) -> int:
        """Return where the first data may be at or after `offset`; what lies before it is zeros."""
        return offset

    def close(self) -> None:  # noqa: B027 - most have nothing to let go
        """Let go what was opened. Twice does no harm."""


class Disk(Protocol):
    """What is asked of a disk that has no better way."""

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block."""

    def flush(self) -> None:
        """Bring everything to stable storage."""


class BackendReader(StorageReader):
    """Reads as a migration does: for disks that answer `read_block` to several threads."""

    why_not_storage = "blkmig cannot see where this kind of disk reads it from"

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._blk = _core.BlockBuffer("own")

    def settle(self) -> None:
        """Flush the disk."""
        self._disk.flush()

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Read a block."""
        self._disk.read_block(self._blk, offset, nbytes)
        return self._blk.payload[:nbytes]
