# SPDX-License-Identifier: GPL-2.0-or-later
"""Past the page cache: a second descriptor of an open file, with O_DIRECT, and what may be read and written by it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

ALIGNMENT = 4096
"""O_DIRECT needs offsets and lengths in whole logical blocks, of 512 or 4096 bytes; others go by the page cache."""


def open_again(fd: int, *, writable: bool) -> int:
    """Return a descriptor with O_DIRECT of the file that is open as `fd`."""
    try:
        flags = os.O_CLOEXEC | os.O_DIRECT | (os.O_RDWR if writable else os.O_RDONLY)
        return os.open(f"/proc/self/fd/{fd}", flags)  # the same file, whatever its name leads to by now
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(errno.EINVAL, "its file system cannot do direct I/O; open it without") from error


def is_aligned(extents: Iterable[tuple[int, int]]) -> bool:
    """Return whether extents, whose bytes stand one behind the other in whole pages, may go past the page cache."""
    return not any((offset | nbytes) % ALIGNMENT for offset, nbytes in extents)
