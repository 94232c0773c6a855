# SPDX-License-Identifier: GPL-2.0-or-later
"""What the link is taken to carry, by what was sent of late: also where that is less than a block."""

from __future__ import annotations

import pytest

import blkmig
from blkmig import _core, errors
from blkmig.migration import figures

MIB = 1 << 20
SEEK_SECONDS = 0.01


class SeekingDisk(blkmig.MemoryBackend):
    """A disk that needs as long for a piece as for a block, under a writer of so many pieces that never ends."""

    def __init__(self, hot: int) -> None:
        super().__init__(bytearray(b"x" * 64 * MIB), name="d")
        self.now = 0.0
        self._hot = [number * MIB // 2 for number in range(hot)]

    def clock(self) -> float:
        return self.now

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        self.now += SEEK_SECONDS
        is_zero = super().read_block(blk, offset, nbytes)
        self._write()
        return is_zero

    def read_extents(self, blk: _core.BlockBuffer, extents: list[tuple[int, int]]) -> None:
        self.now += SEEK_SECONDS * len(extents)
        super().read_extents(blk, extents)
        self._write()

    def _write(self) -> None:
        if not self.is_held:
            for offset in self._hot:
                self.pwrite(b"hot", offset)


def outgoing_of(disk: SeekingDisk, limit: float) -> blkmig.OutgoingMigration:
    parameters = blkmig.MigrationParameters(format="blkmig", downtime_limit=limit, max_rounds=10, downtime_factor=100)
    return blkmig.OutgoingMigration([disk], "file:/dev/null", parameters, clock=disk.clock)


@pytest.mark.parametrize("hot", [100, 40])
def test_pieces_that_take_long_are_not_taken_for_the_end(hot: int) -> None:
    """They are a few hundred KiB, which the link would carry at once; to read them takes longer than the limit."""
    outgoing = outgoing_of(SeekingDisk(hot), 0.3)
    with pytest.raises(errors.NotConverged), outgoing:
        outgoing.run()
    assert outgoing.stats.bandwidth == pytest.approx(4096 / SEEK_SECONDS, rel=0.1)


@pytest.mark.parametrize(("hot", "limit"), [(100, 1.5), (20, 0.3), (1, 0.3)])
def test_the_pause_keeps_the_limit(hot: int, limit: float) -> None:
    outgoing = outgoing_of(SeekingDisk(hot), limit)
    with outgoing:
        outgoing.run()
    assert outgoing.stats.downtime == pytest.approx(hot * SEEK_SECONDS)
    assert outgoing.stats.dirty_rounds == sum(entry.packs > 0 for entry in outgoing.stats.rounds[1:-1]) > 0


def test_a_window_with_less_than_a_block_tells_nothing_of_the_bulk_phase() -> None:
    meter = figures.BandwidthMeter()
    meter.add(10 * MIB, 0.1, least=MIB)
    meter.add(5000, 0.1, least=MIB)
    assert meter.bandwidth == 100 * MIB
    meter.add(5000, 0.05, least=MIB)
    meter.add(0, 0.1, least=1)  # of what was before the first round, nothing counts here
    assert meter.bandwidth == 100 * MIB
    meter.add(5000, 0.05, least=1)
    meter.add(5000, 0.05, least=1)
    assert meter.bandwidth == pytest.approx(100_000)
