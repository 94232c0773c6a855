# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing back early what a target has stored, so that the flush at the end finds little to do."""

from __future__ import annotations

import contextlib

from .. import _core

WRITEBACK_NBYTES = 16 << 20
"""So much is written before the kernel is told to start writing it back: the flush at the end has hardly more to do."""


class EarlyWriteback:
    """Has the file `fd` written back now and then, without waiting for it. What fails there, the flush tells."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._nbytes = 0  # stored since writeback was last started

    def count(self, nbytes: int) -> None:
        """Count what was stored, and start when it is enough."""
        self._nbytes += nbytes
        if self._nbytes >= WRITEBACK_NBYTES:
            self._nbytes = 0
            with contextlib.suppress(OSError):
                _core.start_writeback(self._fd)
