# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration says is left is what the last pass sends, in the section of blocks and in that of packs."""

from __future__ import annotations

import random
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import block
from blkmig.disk import dirty

MIB = 1 << 20
SIZES = [MIB, 3 * MIB + 512, 8 * MIB, 5 * MIB + 512 * 7]


def write_some(backend: blkmig.MemoryBackend, rng: random.Random) -> None:
    """Write pages and stretches anywhere, and nearly all of a block now and then."""
    for _ in range(rng.randrange(60)):
        nbytes = min(backend.size, rng.choice((1, 512, 4096, 4096, 70_000, 900_000)))
        offset = rng.randrange(backend.size - nbytes + 1)
        backend.pwrite(b"x" * nbytes, offset)


@pytest.mark.parametrize("granularity", ["auto", 1 << 16, MIB])
@pytest.mark.parametrize("section", ["block", "blkmig"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_pending_is_what_is_sent(
    tmp_path: Path, section: block.Format, granularity: int | str, seed: int
) -> None:
    rng = random.Random(f"{section} {granularity} {seed}")
    disks = [blkmig.MemoryBackend(bytearray(rng.choice(SIZES)), name=name) for name in "ab"]
    for backend in disks:
        backend.pwrite(b"d" * backend.size, 0)
    outgoing = blkmig.OutgoingMigration(
        disks, f"file:{tmp_path}/stream", blkmig.MigrationParameters(format=section, granularity=granularity)
    )
    with outgoing:
        blk_mig = lab.sent(outgoing)
        while not (blk_mig.bulk_completed and blk_mig.round_number):
            outgoing.iterate()
        for backend in disks:
            write_some(backend, rng)
        pending, before = outgoing.pending(), blk_mig.sent_bytes
        assert pending == sum(expected(bmds.dirty_bitmap, bmds.whole_from) for bmds in blk_mig.bmds_list)
        outgoing.complete()
        assert blk_mig.sent_bytes - before == pending, f"seed {seed}"
        assert blk_mig.in_flight_bytes == 0


def expected(bitmap: dirty.DirtyBitmap, whole_from: int) -> int:
    """Return what the marks cost, block by block."""
    counts = [bitmap.count_in_block(block) for block in range(bitmap.nblocks)]
    return sum(MIB if count >= whole_from else count * bitmap.granularity for count in counts)
