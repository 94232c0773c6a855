# SPDX-License-Identifier: GPL-2.0-or-later
"""The target's host loses power at any moment: what it had acknowledged is there.

Every sector of the source has a stamp, which only grows. A sector of the target is right if its stamp is at least the
one that was sent before the last barrier that the source has heard an ACK of.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import cutter
import lab
import peers
import pytest
import write_log
from lossy import many_barriers

import blkmig
from blkmig import block, stats
from blkmig.migration import barriers

__all__ = ["many_barriers"]

peers.require("qemu-storage-daemon")

MIB = lab.MIB
SIZE = 16 * MIB
SECTOR = write_log.SECTOR


class StampedDisk:
    """A disk in memory, all sectors of which have stamp 1 at first."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._stamp = rng, 1
        self.stamps = [1] * (SIZE // SECTOR)
        self.disk = blkmig.MemoryBackend(bytearray(stamped(1) * len(self.stamps)), name="d")

    def write(self) -> None:
        """Write some sectors at random, with the next stamp."""
        self._stamp += 1
        for _ in range(3):
            count = self._rng.choice((1, 8, 64))
            first = self._rng.randrange(len(self.stamps) - count + 1)
            self.disk.pwrite(stamped(self._stamp) * count, first * SECTOR)
            self.stamps[first : first + count] = [self._stamp] * count


def stamped(stamp: int) -> bytes:
    return struct.pack("<Q", stamp) * (SECTOR // 8)


class Acknowledgements:
    """What each barrier stands behind, and how long the target's log was when its ACK was heard."""

    def __init__(self, file: write_log.LoggedFile, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = file
        self.sent: list[int] = [0] * (SIZE // SECTOR)
        """The stamps that have been sent; what is not known to have been is 0."""

        self._behind: dict[int, list[int]] = {}
        self.heard: list[tuple[int, list[int]]] = []
        make = block.barrier_records

        def barrier_records(number: int) -> object:
            self._behind[number] = self.sent
            return make(number)

        monkeypatch.setattr(block, "barrier_records", barrier_records)

    def told(self, event: stats.Event) -> None:
        if isinstance(event, stats.Acknowledged):
            self.heard.append((self._file.log_length, self._behind[event.number]))
        elif isinstance(event, stats.Reconnecting):  # what was not acknowledged is sent again
            self.sent = self.heard[-1][1] if self.heard else [0] * len(self.sent)


@pytest.mark.usefixtures("many_barriers")
@pytest.mark.parametrize("cuts", [[], [(5 * MIB, "reset"), (3 * MIB, "end"), (9 * MIB, "silence")]], ids=["", "cut"])
def test_what_was_acknowledged_is_there(
    cuts: list[tuple[int, cutter.How]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    monkeypatch.setattr(barriers, "BARRIER_BYTES", 1)
    seed = random.randrange(1 << 32) if is_long else 11
    rng = random.Random(seed)
    source = StampedDisk(rng)
    chosen = blkmig.MigrationParameters(reading="inline", switchover="manual", idle_timeout=2, connect_timeout=5)
    with write_log.logged_file(SIZE) as file:
        receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": file.path}, state_dir=tmp_path)
        seen = Acknowledgements(file, monkeypatch)
        with cutter.Cutter(receiver.uri, cuts) as relay:
            with blkmig.outgoing([source.disk], relay.uri, chosen, on_progress=seen.told) as migration:
                bulk(migration, seen)
                while len(seen.heard) < (200 if is_long else 8):
                    source.write()
                    while migration.pending():
                        migration.iterate()
                    seen.sent = list(source.stamps)
                migration.complete()
            receiver.result()
        assert relay.done == len(cuts) == migration.stats.reconnects, f"seed {seed}"
        for length, stamps in seen.heard:
            check(file, length, stamps, rng, seed)
        assert write_log.after_power_loss(SIZE, file.writes(file.log_length), rng) == source.disk.pread(0, SIZE)


def bulk(migration: blkmig.OutgoingMigration, seen: Acknowledgements) -> None:
    """Send the disk once; what has been sent are its first blocks."""
    while migration.pending():
        migration.iterate()
        if not migration.stats.reconnects:
            sectors = migration.stats.blocks * MIB // SECTOR
            seen.sent = [1] * sectors + [0] * (SIZE // SECTOR - sectors)


def check(file: write_log.LoggedFile, length: int, stamps: list[int], rng: random.Random, seed: int) -> None:
    """Lose the power when the log was so long, and somewhat later."""
    for lost_at in (length, length + rng.randrange(4 * MIB)):
        disk = write_log.after_power_loss(SIZE, file.writes(lost_at), rng)
        found = [stamp for (stamp,) in struct.iter_unpack(f"<Q{SECTOR - 8}x", disk)]
        missing = [sector for sector, (has, needs) in enumerate(zip(found, stamps, strict=True)) if has < needs]
        assert not missing, f"seed {seed}: acknowledged, and not there: {len(missing)} sectors from {missing[0]} on"
