# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks in memory that fail at a place, and whether anything of a migration is left on one."""

from __future__ import annotations

import errno

import blkmig
from blkmig import testing


def faulty_disk(content: bytes, *, reads: int = -1, writes: int = -1, flushes: bool = False) -> testing.FaultyDisk:
    """Return a disk that fails to read, write or flush, each time that this offset is touched."""
    disk = testing.FaultyDisk(blkmig.MemoryBackend(bytearray(content), name="d"))
    if reads >= 0:
        disk.inject(testing.Fault(verb="read", offset=reads, times=None, error=errno.EIO))
    if writes >= 0:
        disk.inject(testing.Fault(verb="write", offset=writes, times=None, error=errno.ENOSPC))
    if flushes:
        disk.inject(testing.Fault(verb="flush", times=None, error=errno.EIO))
    return disk


def is_free(disk: blkmig.MemoryBackend | testing.FaultyDisk) -> bool:
    """Return whether nothing of a migration is left on the disk."""
    with disk.block_use("a test"):
        disk.pwrite(b"free", 0)
    return not disk.trackers
