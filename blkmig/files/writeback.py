# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing back early what a target has stored, so that the flush at the end finds little to do."""

from __future__ import annotations

import contextlib
import os

from .. import _core

WRITEBACK_NBYTES = 16 << 20
"""So much is written before the kernel is told to start writing it back: the flush at the end has hardly more to do."""

SHARE = 8
"""Behind a flush another one may come soon, and writers wait for that. So it starts with each eighth of what was
written since then: whenever the next flush comes, most of its work is done, or on its way."""


class EarlyWriteback:
    """Has the file `fd` written back now and then, without waiting for it. What fails there, the flush tells.

    `flush` may be called by another thread than `count`: all that can come of it is a start that is early or late.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._nbytes = 0  # stored since writeback was last started
        self._since_flush = SHARE * WRITEBACK_NBYTES  # before the first one: as if one were long ago

    def count(self, nbytes: int) -> None:
        """Count what was stored, and start when it is enough."""
        self._nbytes += nbytes
        self._since_flush += nbytes
        if self._nbytes >= min(WRITEBACK_NBYTES, self._since_flush // SHARE):
            self._nbytes = 0
            with contextlib.suppress(OSError):
                _core.start_writeback(self._fd)

    def flush(self, fd: int) -> None:
        """Return when all that was written to `fd`, the file or -1 once it is closed, is on stable storage."""
        self._nbytes = self._since_flush = 0
        os.fdatasync(fd)
