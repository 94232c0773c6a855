# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel is asked of an open file or block device by number: its size, its sectors, zeros without data.

Every call takes a descriptor and raises :class:`OSError`.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from .. import _core

# ioctl numbers as x86, Arm, RISC-V and s390 have them
_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKROGET = 0x125E

ZERO_STEP = 1 << 30  # one request of the kernel cannot be interrupted
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL})


def size(fd: int) -> int:
    """Return the bytes of a block device."""
    found: int = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    return found


def sector_size(fd: int) -> int:
    """Return the bytes of a logical block of a device: it zeroes only whole ones by itself."""
    return _ask_int(fd, _BLKSSZGET)


def is_read_only(fd: int) -> bool:
    """Return whether a device refuses writes."""
    return bool(_ask_int(fd, _BLKROGET))


def zero(fd: int, start: int, stop: int, *, is_device: bool) -> bool:
    """Zero whole logical blocks by the first way that works here, False if none does; a hole gives the space back."""
    for way in (_core.punch_hole, _core.zero_out if is_device else _core.zero_range):
        try:
            for offset in range(start, stop, ZERO_STEP):
                way(fd, offset, min(ZERO_STEP, stop - offset))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return True
    return False


def _ask_int(fd: int, request: int) -> int:
    answer: int = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0]
    return answer
