# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that is written over an old copy of its disk: it has the mark of a half-made target while it is neither.

::

    before the first write   vda.raw                                     an old copy
    begin                    vda.raw = .vda.raw.blkmig-partial           a part of the old disk, a part of the new one
    end                      vda.raw                                     the new disk

The mark is what `partial` says of it: whatever ends the run, the next one knows what the file is. To one that compares
again it is an old copy as good as before; any other one begins anew.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .. import errors
from ..disk import backend
from . import file, folder, locks, partial


def take(target: file.FileBackend | backend.BlockBackend, path: str, device: str) -> InPlace | None:
    """Prepare the disk at `path`, which is open as `target`, for being compared and written over. Blocks.

    A file gets whatever size its disk has, and can be marked; return its mark. What is read comes from storage, as far
    as nobody else holds it in memory: what an earlier program has written, and the disk has not stored, is no copy.
    """
    if not settle(target) or not target.files[0].is_regular:
        return None
    target.is_growable = True
    return InPlace(path, device=device)


def settle(target: backend.BlockBackend) -> bool:
    """Have what is read of a target come from storage, as far as that can be; return whether it is a plain file or a
    device. Blocks."""
    fd = target.plain_fd() if isinstance(target, file.FileBackend) else None
    if fd is None:
        return False
    target.flush()
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return True


class InPlace:
    """The mark of the file at `path`, for the disk `device`. No two runs have the same file at once.

    Raises :class:`OSError`, and DeviceBusy if another run is at it.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: str) -> None:
        real = Path(os.path.realpath(path))
        self._name, self._mark = real.name, partial.partial_name(real.name)
        self._place = folder.Folder(real.parent)
        self._fd = -1
        self._pid = os.getpid()
        self._has_begun = False
        try:
            self._fd = self._place.open(self._name, os.O_RDWR)
            if not locks.hold_being_made(self._fd):
                raise errors.DeviceBusy("cannot be received", device=device, cause=f"another blkmig is writing {real}")
        except BaseException:
            self.close()
            raise

    @property
    def inode(self) -> int:
        """Return the number of the file."""
        return os.fstat(self._fd).st_ino

    def begin(self) -> None:
        """Mark the file, which is about to be written; a mark that an earlier run has left stays."""
        if self._place.is_named(self._mark, self._fd):
            return
        if not self._place.is_named(self._name, self._fd):
            raise FileNotFoundError(errno.ENOENT, "it was removed or replaced before it was written")
        self._has_begun = self._place.link(self._name, self._mark)
        self._place.sync()

    def end(self, *, is_whole: bool) -> None:
        """Remove the mark, if the file is whole or was not written; else it stays, as one does that was there."""
        if self._fd >= 0 and (is_whole or self._has_begun):
            self._place.unlink(self._mark, self._fd)
            self._place.sync()
        self.close()

    def close(self) -> None:
        """Let the file go. Twice does no harm."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            locks.close(fd, pid=self._pid)
        self._place.close()
