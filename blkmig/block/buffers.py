# SPDX-License-Identifier: GPL-2.0-or-later
"""What the disks of one incoming stream share, so that its memory does not grow with their number.

One buffer carries the payloads of all disks whose blocks arrive alike, for blocks come one after the other. A target
also needs memory for blocks that wait to be stored. Only the few disks that got blocks last have that memory; the
others have stored what waited.
"""

from __future__ import annotations

from typing import Protocol

from .. import _core, passage
from . import checksums, compressed, extras, zeropieces

STORING_DISKS = 4
"""Disks that may have blocks waiting at the same time: bulk goes from disk to disk, and few are written in a round."""


class StoringDevice(Protocol):
    """A disk that takes blocks."""

    arrival: passage.Arrival
    """How its blocks arrive."""

    def rest(self) -> None:
        """Store what waits and hold nothing until the next block."""


class LoadBuffers:
    """The buffers of one stream. For the thread that loads it."""

    def __init__(self) -> None:
        self._buffers: dict[passage.Arrival, _core.BlockBuffer] = {}
        self._storing: list[StoringDevice] = []
        self.checksums = checksums.Expected()
        """What the stream says of the payload that comes next."""

        self.frames = compressed.Coming()
        """The same, about how it comes."""

        self.zeros = zeropieces.Coming()
        """The same, about what of it does not come."""

    def on_extra(self) -> dict[int, extras.OnExtra]:
        """Return what takes the records that say something of payloads, by their kind."""
        return {
            extras.ExtraKind.CHECKS: self.checksums.take,
            extras.ExtraKind.ZSTD: self.frames.take,
            extras.ExtraKind.ZEROS: self.zeros.take,
        }

    def forget(self) -> None:
        """Have new buffers: a link was lost, which may have left a part of a payload in one of them."""
        self._buffers.clear()
        self._storing.clear()
        self.checksums.forget()
        self.frames.forget()
        self.zeros.forget()

    def lend(self, device: StoringDevice) -> _core.BlockBuffer:
        """Return the buffer for the blocks of `device`, until it is told to rest. May wait for another disk."""
        if len(self._storing) == STORING_DISKS:
            self._storing.pop(0).rest()
        self._storing.append(device)
        if device.arrival not in self._buffers:
            self._buffers[device.arrival] = _core.BlockBuffer(device.arrival.payload)
        return self._buffers[device.arrival]
