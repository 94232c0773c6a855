# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a user calls a disk to the open disk: sources, targets, and disks served for people without a VM."""

from typing import TYPE_CHECKING

from .. import later

if TYPE_CHECKING:
    from .opening import describe, files_named, open_disk, open_disks
    from .targetfile import TargetFile
    from .together import open_sources

__all__ = ["TargetFile", "describe", "files_named", "open_disk", "open_disks", "open_sources"]

__getattr__ = later.opener(
    __name__,
    opening="describe files_named open_disk open_disks",
    targetfile="TargetFile",
    together="open_sources",
)
