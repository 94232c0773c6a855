# SPDX-License-Identifier: GPL-2.0-or-later
"""What the header of a qcow2 image says of its state, which QEMU's tools read over without a word.

::

    0  "QFI\\xfb"  4  u32 version  ...  72  u64 incompatible features, from version 3 on
                                            bit 0: dirty, bit 1: corrupt
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Final

from .. import logs

logger = logs.Logger(__name__)

_HEADER: Final = struct.Struct(">4sI64xQ")
_MAGIC: Final = b"QFI\xfb"

CORRUPT: Final = (
    "disk %r: QEMU has marked its image %r as corrupt: what is read of it may be wrong, and is taken as it is; look at "
    "it first, and mend it when nobody uses it: qemu-img check -r all"
)
DIRTY: Final = (
    "disk %r: its image %r was not closed, as after a power failure: what its last writer had not flushed is not in "
    "it; qemu-img check -r all mends its reference counts, when nobody uses it"
)
MARKS: Final = {1 << 1: CORRUPT, 1 << 0: DIRTY}


def warn_of_marks(path: str, *, device: str) -> None:
    """Warn if the file at `path` is a qcow2 image that is marked as corrupt, or as not closed. Never raises."""
    features = 0
    with contextlib.suppress(OSError, ValueError, struct.error):  # gone, or too short: QEMU has opened what it needs
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            magic, version, said = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        finally:
            os.close(fd)
        features = said if magic == _MAGIC and version >= 3 else 0
    for mark, words in MARKS.items():
        if features & mark:
            logger.warning(words, device, path)
