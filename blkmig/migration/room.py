# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether there is room for the disks that come, said before the first block of them.

What a stream or a user says is how large the disks are. How much of that is data, nobody says: zeros become holes at
the target, also those that the source has stored as data. So a file system with less free space than the disks have
bytes may be large enough: that is a warning at once, and no reason to refuse. If the data does not fit in the end, the
write that fails raises the error (ENOSPC).
"""

from __future__ import annotations

import os
import pathlib
import stat

from .. import logs, units

logger = logs.Logger(__name__)

_STAT_BLOCK = 512  # bytes that st_blocks counts


class Room:
    """What the targets of one migration may take of each file system. For the thread that loads the stream."""

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def want(self, path: str | os.PathLike[str], size: int) -> None:
        """Add a disk of `size` bytes that goes to the file at `path`, or to new ones in that folder.

        Warns once for a file system with less free space than all that goes there may take. A device has its space.
        """
        real = pathlib.Path(os.path.realpath(path))
        try:
            there = real.stat() if real.exists() else None
            if there is not None and not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)):
                return
            place = real if there is not None and stat.S_ISDIR(there.st_mode) else real.parent
            device, about = place.stat().st_dev, os.statvfs(place)
        except (OSError, ValueError):
            return  # whoever opens it says what is wrong
        held = there.st_blocks * _STAT_BLOCK if there is not None and stat.S_ISREG(there.st_mode) else 0
        before = self._wanted.get(device, 0)
        wanted = self._wanted[device] = before + max(0, size - held)
        free = about.f_bavail * about.f_frsize
        if before <= free < wanted:
            logger.warning(
                "the disks may take %s of the file system of %s, which has %s free: they fit only if at least %s of "
                "them are zeros",
                units.format_size(wanted), str(place), units.format_size(free), units.format_size(wanted - free),
            )  # fmt: skip
