# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether there is room for the disks that come, said before the first block of them.

What a stream or a user says is how large the disks are. How much of that is data, nobody says: zeros become holes at
the target, also those that the source has stored as data. So a file system with less free space than the disks have
bytes may be large enough: that is a warning at once, and no reason to refuse. If the data does not fit in the end, the
write that fails raises the error (ENOSPC), which says so.
"""

from __future__ import annotations

import os
import pathlib
import stat
from typing import NamedTuple

from .. import logs, sources, units

logger = logs.Logger(__name__)

_STAT_BLOCK = 512  # bytes that st_blocks counts


class _FileSystem(NamedTuple):
    place: str
    free: int
    """Bytes, before the first disk took any."""


class Room:
    """What the targets of one migration may take of each file system. For the thread that loads the stream.

    `want` what each of them may take, and then `warn`.
    """

    def __init__(self) -> None:
        self._file_systems: dict[int, _FileSystem] = {}
        self._wanted: dict[int, int] = {}
        self._told: set[int] = set()

    def want_for(self, target: sources.TargetFile, size: int) -> None:
        """Add a disk of `size` bytes that goes to `target`; what its file holds already it need not take.

        That is the file of that name, or for a new one the hidden file of an earlier run, which this one takes up.
        """
        mark = target.mark() if target.is_new else None
        self.want(target.path, size, None if mark is None else mark.path)

    def want(self, path: str | os.PathLike[str], size: int, held_by: str | None = None) -> None:
        """Add a disk of `size` bytes that goes to the file at `path`, or to new ones in that folder.

        The file that has a part of its room already is `held_by`, if it is another one. A device has its space.
        """
        real = pathlib.Path(os.path.realpath(path))
        try:
            there = _stat(real)
            if there is not None and not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)):
                return
            place = real if there is not None and stat.S_ISDIR(there.st_mode) else real.parent
            device, about = place.stat().st_dev, os.statvfs(place)
            holder = there if held_by is None else _stat(pathlib.Path(held_by))
        except (OSError, ValueError):
            return  # whoever opens it says what is wrong
        held = holder.st_blocks * _STAT_BLOCK if holder is not None and stat.S_ISREG(holder.st_mode) else 0
        self._file_systems.setdefault(device, _FileSystem(str(place), about.f_bavail * about.f_frsize))
        self._wanted[device] = self._wanted.get(device, 0) + max(0, size - held)

    def warn(self) -> None:
        """Warn, once, of each file system with less free space than all that goes there may take."""
        for device, wanted in self._wanted.items():
            place, free = self._file_systems[device]
            if free < wanted and device not in self._told:
                self._told.add(device)
                logger.warning(
                    "the disks may take %s of the file system of %s, which has %s free: they fit only if at least %s "
                    "of them are zeros",
                    units.format_size(wanted), place, units.format_size(free), units.format_size(wanted - free),
                )  # fmt: skip


def _stat(path: pathlib.Path) -> os.stat_result | None:
    return path.stat() if path.exists() else None
