# SPDX-License-Identifier: GPL-2.0-or-later
"""What the disks of one incoming stream share, so that its memory does not grow with their number.

One buffer carries every payload, for blocks come one after the other. What a target holds beside that, to store blocks
behind the receiver's back, only the few disks have to which blocks came last: the others have stored what waited.
"""

from __future__ import annotations

from typing import Protocol

from .. import _core

STORING_DISKS = 4
"""Disks that may hold blocks of theirs at once: a stream goes from disk to disk, and its rounds go over few."""


class StoringDevice(Protocol):
    """A disk that takes blocks."""

    @property
    def takes_pages(self) -> bool:
        """Return whether payloads may stay pages."""

    def rest(self) -> None:
        """Store what waits and hold nothing until the next block."""


class LoadBuffers:
    """The buffers of one stream. For the thread that loads it."""

    def __init__(self) -> None:
        self._buffers: dict[bool, _core.BlockBuffer] = {}
        self._storing: list[StoringDevice] = []

    def lend(self, device: StoringDevice) -> _core.BlockBuffer:
        """Return the buffer for the blocks of `device`, until it is told to rest. May wait for another disk."""
        if len(self._storing) == STORING_DISKS:
            self._storing.pop(0).rest()
        self._storing.append(device)
        buf = self._buffers.get(device.takes_pages)
        if buf is None:
            buf = self._buffers[device.takes_pages] = _core.BlockBuffer()
            buf.mappable = False  # digests look at what is read
            buf.takes_pages = device.takes_pages
            buf.movable = True
        return buf
