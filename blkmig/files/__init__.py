# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that this process reads and writes itself: raw files, block devices, overlays, memory, shared dirty maps."""

from typing import TYPE_CHECKING

from .. import later

if TYPE_CHECKING:
    from .file import FileBackend
    from .memory import MemoryBackend

__all__ = ["FileBackend", "MemoryBackend"]

__getattr__ = later.opener(
    __name__,
    file="FileBackend",
    memory="MemoryBackend",
)
