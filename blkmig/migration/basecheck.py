# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether targets hold the source's base, looked at before the first block of any disk is written.

A source with digests says first what only its bases hold (see `block.basewords`). The target is read where that is,
part by part as it comes, so both ends hash at the same time. The source waits for the end of it where it can hear us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .. import block, disk, errors
from . import heartbeat


class BaseCheck:
    """Compares targets with what a stream says of their bases. For the thread that loads it.

    `beat` is called about every second, with a number that grows and a text, `look` before each block, and may raise.
    """

    def __init__(self, beat: Callable[[int, str], None], look: Callable[[], None]) -> None:
        self._beat = beat
        self._look = look
        self._blocks = 0
        self._beaten = time.monotonic()

    def check(self, device: block.LoadDevice, size: int, runs: Sequence[block.BaseRun]) -> None:
        """Raise :class:`~blkmig.errors.WrongBase` unless the target of a disk of `size` bytes holds these runs. Blocks.
        """
        assert isinstance(device, block.BlkLoadDevice)
        geometry = disk.BlockGeometry(size)
        for run in runs:
            if device.digest_of_run(geometry, run.first, run.nblocks, self._next_block) != run.digest:
                raise _wrong_base(device.statistics.name, geometry, run)

    def _next_block(self) -> None:
        self._look()
        self._blocks += 1
        now = time.monotonic()
        if now - self._beaten >= heartbeat.BEAT_SECONDS:
            self._beaten = now
            self._beat(self._blocks, f"the base is compared, {self._blocks} blocks so far")


def _wrong_base(name: str, geometry: disk.BlockGeometry, run: block.BaseRun) -> errors.WrongBase:
    start, _ = geometry.block_range(run.first)
    last, nbytes = geometry.block_range(run.first + run.nblocks - 1)
    return errors.WrongBase(
        f"disk {name!r}: the target does not hold the source's base, nothing was written; they differ for the first "
        f"time between the offsets {start} and {last + geometry.clip(last, nbytes)}: begin with a copy of the base on "
        "which the source's disk stands now, or have all of the disk sent",
        device=name,
    )
