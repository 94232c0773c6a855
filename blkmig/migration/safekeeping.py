# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that came is brought to stable storage, and read back from there where that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from .. import errors
from . import farewell, heartbeat, targets, verdict
from .announcement import Announcement


def make_durable(came: targets.TargetSet, beats: heartbeat.Heartbeat, check_cancelled: Callable[[], None]) -> None:
    """Flush all disks, with signs of life to a source that waits for our word. Blocks.

    A flush that is under way is waited for before that: a disk does not tell its error twice.
    """
    with beats:
        came.beside.settle()
        for number, device in enumerate(came.devices, 1):
            check_cancelled()
            beats.text = f"the target of disk {device.statistics.name!r} is flushed ({number} of {len(came.devices)})"
            with device.turn:
                device.backend.flush()
            beats.done = number


def verify(
    came: targets.TargetSet, announced: Announcement, check_cancelled: Callable[[], None], *, is_told: bool
) -> None:
    """Read everything back, and close the targets. The source may have had our word (`is_told`), which is that all is
    on stable storage, no more. Blocks."""
    try:
        with farewell.behind_the_word() if is_told else contextlib.nullcontext():
            verdict.verify_digests(came.devices, announced, check_cancelled)
        came.close()
    except errors.MigrationError as error:
        if is_told:
            error.add_note(
                "the source was told before that everything is on stable storage; if the disk has moved, look at "
                "the source's copy before anything else writes either"
            )
        raise
