# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk whose dirty bitmap is kept elsewhere and has to be fetched, as that of a QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import migration
from blkmig.block import save


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


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def dirty_blocks(bmds: Any) -> list[int]:
    return [block for block in range(bmds.geometry.nblocks) if bmds.dirty_bitmap.is_dirty(block)]


def test_what_a_round_has_not_come_to_is_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks are fetched while it lasts, too, so that a write ahead of it does not count as one behind it."""
    size, clock = 32 * lab.MIB, Clock()
    monkeypatch.setattr(save, "SECTION_SECONDS", -1.0)  # a section ends after its first step
    disk = RemoteDisk(bytearray(b"early" * (size // 5) + b"ok"), name="d")
    target = bytearray(size)
    with disk, blkmig.MemoryBackend(target, name="d") as destination:
        receiver = lab.Receiver(f"unix:{tmp_path}/socket", {"d": destination})
        parameters = blkmig.MigrationParameters(reading="inline", granularity=lab.MIB)
        with migration.OutgoingMigration([disk], receiver.uri, parameters, clock=clock) as outgoing:
            outgoing.iterate()
            bmds = lab.sent(outgoing).bmds_list[0]
            behind, ahead = 0, 31 * lab.MIB
            assert behind < bmds.cur_sector * 512 < ahead
            for offset in (behind, ahead):
                disk.write_elsewhere(offset)
            clock.now += 1.0
            while not bmds.bulk_completed:
                outgoing.iterate()
            assert not disk.unfetched
            assert dirty_blocks(bmds) == [0]
            for block in range(32):
                disk.write_elsewhere(block * lab.MIB)
            outgoing.iterate()  # block 0, and the next round begins with all of them
            outgoing.iterate()
            assert dirty_blocks(bmds) == list(range(1, 32))
            for offset in (behind, ahead):
                disk.write_elsewhere(offset)
            clock.now += 1.0
            while bmds.cur_dirty:
                outgoing.iterate()
            assert dirty_blocks(bmds) == [0]
            outgoing.complete()
        receiver.result()
    assert target == disk.content
