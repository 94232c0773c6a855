# SPDX-License-Identifier: GPL-2.0-or-later
"""Where blocks come from and where they go: disks behind one contract, and the marks of what was written."""

from .backend import BlockBackend, sync_disks
from .dirty import DirtyBitmap
from .file import FileBackend
from .geometry import BlockGeometry
from .local import LocalBackend
from .memory import MemoryBackend
from .open import describe, open_disk, open_disks
from .targetfile import TargetFile
from .together import open_sources

__all__ = [
    "BlockBackend",
    "BlockGeometry",
    "DirtyBitmap",
    "FileBackend",
    "LocalBackend",
    "MemoryBackend",
    "TargetFile",
    "describe",
    "open_disk",
    "open_disks",
    "open_sources",
    "sync_disks",
]
