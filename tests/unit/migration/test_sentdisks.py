# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of each disk at the sending end: they add up to those of all, while it sends and at the end."""

from __future__ import annotations

import os
from pathlib import Path

import lab

import blkmig
from blkmig import stats

MIB = lab.MIB


def test_each_disk_has_its_figures(tmp_path: Path) -> None:
    """One disk is written after it was sent, the other is not."""
    one = blkmig.MemoryBackend(bytearray(os.urandom(3 * MIB)), name="one")
    two = blkmig.MemoryBackend(bytearray(os.urandom(MIB) + bytes(MIB)), name="two")
    with blkmig.outgoing([one, two], f"file:{tmp_path}/stream") as migration:
        while not migration.threshold_size():
            migration.iterate()
        one.pwrite(b"later", MIB)
        migration.run()
    found = migration.stats
    assert {name: (disk.size, disk.passed_bytes, disk.dirty_bytes) for name, disk in found.disks.items()} == {
        "one": (3 * MIB, 3 * MIB, 0),
        "two": (2 * MIB, 2 * MIB, 0),
    }
    assert sum(disk.blocks for disk in found.disks.values()) == found.blocks
    assert (found.disks["one"].resent_blocks + found.disks["one"].packs, found.disks["two"].resent_blocks) == (1, 0)


def test_they_are_kept_up_to_date_for_who_wants_reports(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(os.urandom(MIB)), name="d")
    seen: list[int] = []

    def look(event: stats.Event) -> None:
        if isinstance(event, stats.Progressed) and migration.stats.disks:
            seen.append(migration.stats.disks["d"].dirty_bytes)

    migration = blkmig.outgoing([disk], f"file:{tmp_path}/stream", on_progress=look)
    with migration:
        while not migration.threshold_size():
            migration.iterate()
        disk.pwrite(b"later", 0)
        migration.run()
    assert seen
    assert migration.stats.disks["d"].dirty_bytes == 0
