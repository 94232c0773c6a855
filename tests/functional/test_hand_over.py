# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sender says of its pause, and of a target that verifies after the hand-over."""

from __future__ import annotations

import threading
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import _core, stats
from blkmig.cli import send as send_command

MIB = lab.MIB


class SlowToRead(blkmig.MemoryBackend):
    """A target that is read back only when it is allowed to."""

    def __init__(self) -> None:
        super().__init__(bytearray(4 * MIB), name="d")
        self.may_read = threading.Event()

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        assert self.may_read.wait(30)
        return super().read_block(blk, offset, nbytes)


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_the_pause_ends_before_the_target_reads_anything_back(tmp_path: Path, writers_after: str) -> None:
    """B2: the hand-over comes first; what grows with the disk is done when the sender has ended."""
    disk, target = blkmig.MemoryBackend(bytearray(b"x" * 4 * MIB), name="d"), SlowToRead()
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target}, verify=True)
    sent = blkmig.send([disk], receiver.uri, writers_after=writers_after, digests=True)
    assert sent.status == "completed"
    assert not target.may_read.is_set()
    target.may_read.set()
    assert receiver.result().disks["d"].verified


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"downtime": 0.02}, "20 ms"),
        ({"downtime": 0.4}, "400 ms, which is over the limit of 300 ms"),
        ({"downtime": 0.02, "pauses_given_up": 1, "downtime_given_up": 1.2}, "1.2 s in a pause that was given up"),
        ({"downtime": 0.02, "pauses_given_up": 2, "downtime_given_up": 2.4}, "2.4 s in 2 pauses that were given up"),
    ],
)
def test_a_limit_that_was_not_kept_is_said(figures: dict[str, float], words: str) -> None:
    """E12: and so are pauses that were given up."""
    result = stats.OutgoingStatistics(downtime_limit=0.3, **figures)  # type: ignore[arg-type]
    assert words in send_command.describe_downtime(result)
