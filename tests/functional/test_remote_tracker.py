# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk whose dirty bitmap is kept elsewhere and has to be fetched, as that of a QEMU."""

from __future__ import annotations

from pathlib import Path

import lab

import blkmig
from blkmig import _core


class RemoteDisk(blkmig.MemoryBackend):
    """A disk in memory that is written behind our back, at each of the first reads; `sync_dirty` is what tells."""

    def __init__(self, content: bytearray, *, name: str, writes: int) -> None:
        super().__init__(content, name=name)
        self.content = content
        self.writes_left = writes
        self.unfetched: list[int] = []
        self.unfetched_at_hold: int | None = None

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        is_zero = super().read_block(blk, offset, nbytes)
        if self.writes_left:
            self.writes_left -= 1
            self.content[offset : offset + 5] = b"later"
            self.unfetched.append(offset)
        return is_zero

    def sync_dirty(self) -> None:
        while self.unfetched:
            self.mark_dirty(self.unfetched.pop(), 5)

    def hold_writers(self) -> None:
        self.unfetched_at_hold = len(self.unfetched)
        super().hold_writers()


def test_the_last_pass_begins_with_what_is_known_now(tmp_path: Path) -> None:
    """What is pending is fetched before it is compared with the limit, also in the middle of a round.

    The rate limit ends a section after a few blocks; the downtime limit would allow the rest of the round at once.
    """
    size = 8 * lab.MIB
    disk = RemoteDisk(bytearray(b"early" * (size // 5) + b"end"), name="d", writes=8 + 2)
    target = bytearray(size)
    with disk, blkmig.MemoryBackend(target, name="d") as destination:
        limits = {"downtime_limit": 100, "max_bandwidth": 40 * lab.MIB}
        lab.migrate(tmp_path, "unix", [disk], {"d": destination}, **limits)
    assert disk.unfetched_at_hold == 0
    assert target == disk.content
