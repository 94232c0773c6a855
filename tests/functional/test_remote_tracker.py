# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk whose dirty bitmap is kept elsewhere and has to be fetched, as that of a QEMU."""

from __future__ import annotations

from pathlib import Path

import lab

import blkmig


class RemoteDisk(blkmig.MemoryBackend):
    """A disk in memory that is written behind our back; `sync_dirty` is what tells."""

    def __init__(self, content: bytearray, *, name: str) -> None:
        super().__init__(content, name=name)
        self.content = content
        self.unfetched: list[int] = []

    def write_elsewhere(self, offset: int) -> None:
        self.content[offset : offset + 5] = b"later"
        self.unfetched.append(offset)

    def sync_dirty(self) -> None:
        while self.unfetched:
            self.mark_dirty(self.unfetched.pop(), 5)

    def hold_writers(self) -> None:
        assert not self.unfetched, "the writers are held, and nobody has asked what they wrote"
        super().hold_writers()


def test_the_last_pass_begins_with_what_is_known_now(tmp_path: Path) -> None:
    """What is pending is fetched before it is compared with the limit, not only when a round begins."""
    size = 8 * lab.MIB
    disk = RemoteDisk(bytearray(b"early" * (size // 5) + b"end"), name="d")
    target = bytearray(size)

    def drive(outgoing: blkmig.OutgoingMigration) -> None:
        while outgoing.threshold_size() == 0:
            outgoing.iterate()
        for offset in range(0, size, lab.MIB):
            disk.write_elsewhere(offset)
        outgoing.run()

    with disk, blkmig.MemoryBackend(target, name="d") as destination:
        lab.migrate(tmp_path, "unix", [disk], {"d": destination}, drive=drive, downtime_limit=100)
    assert target == disk.content
