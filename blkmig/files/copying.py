# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying one file's contents to another: the same blocks where the file system shares them, else what is data.

::

    whole file       FICLONE              no byte is copied: the two share their blocks until one is written
    extent of data   copy_file_range      in the kernel, where the two file systems allow it
                     pread, pwrite        anywhere

Holes stay holes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from .. import _core

_FICLONE: Final = 0x40049409
_PIECE: Final = 64 << 20
"""Bytes of one call: an interrupt waits for it."""

_BUFFER: Final = 1 << 20
_UNSUPPORTED: Final = frozenset(
    {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)


def copy_contents(source: int, target: int, nbytes: int) -> None:
    """Make the empty file open at `target` hold the first `nbytes` of what is open at `source`. Blocks.

    Raises :class:`OSError`; then `target` holds a part.
    """
    if clone(source, target):
        os.ftruncate(target, nbytes)
        return
    os.ftruncate(target, nbytes)
    offset = 0
    while (extent := _core.next_data(source, offset, nbytes)) is not None:
        start, offset = extent
        while start < offset:
            start += copy_some(source, target, start, min(offset - start, _PIECE))


def clone(source: int, target: int) -> bool:
    """Have the two files share their blocks; False where that cannot be."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def copy_some(source: int, target: int, offset: int, nbytes: int) -> int:
    """Copy up to `nbytes` at `offset`, which both files have, and return how many that were: at least one."""
    try:
        if count := os.copy_file_range(source, target, nbytes, offset, offset):
            return count
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    data = os.pread(source, min(nbytes, _BUFFER), offset)
    if not data:
        raise OSError(errno.EIO, "the old copy was cut while it was copied")
    _core.pwrite_full(target, data, offset)
    return len(data)
