# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract of a disk, and no kind of disk: what a source or target can do, and the marks of what was written."""

from .backend import BlockBackend, sync_disks
from .dirty import DirtyBitmap
from .extents import Extents
from .geometry import BlockGeometry
from .local import LocalBackend

__all__ = ["BlockBackend", "BlockGeometry", "DirtyBitmap", "Extents", "LocalBackend", "sync_disks"]
