# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver sees of its disks and of rounds: maps that grow, against a model with one entry for each block."""

from __future__ import annotations

import os
import random
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import diskmap, report
from blkmig.block import coverage

MIB = lab.MIB


def looks_of(model: dict[int, list[int]], nblocks: int, size: int, farthest: int) -> list[int]:
    """Return how cells of `size` blocks look; the model has of each block whether it was data, and bytes that came
    again."""
    found = []
    for start in range(0, nblocks, size):
        blocks = [model.get(block, [0, 0]) for block in range(start, min(start + size, nblocks))]
        again = sum(each[1] for each in blocks)
        if again:
            found.append(3 + sum(again > most * len(blocks) * MIB for most in (0.25, 1.0, 4.0)))
        elif start >= farthest:
            found.append(diskmap.AHEAD)
        else:
            found.append(diskmap.DATA if any(each[0] for each in blocks) else diskmap.EMPTY)
    return found


@pytest.mark.parametrize("nblocks", [1, 2, 511, 512, 513, 1024, 1025, 5000])
def test_a_walk(nblocks: int) -> None:
    """Blocks and packs as streams have them, in any order, through what covers the disk."""
    for seed in range(20):
        rnd = random.Random(seed)
        covered = coverage.BlockCoverage("vda", nblocks * MIB)
        found = covered.map = diskmap.ArrivedMap()
        model: dict[int, list[int]] = {}
        packs = farthest = 0
        for _ in range(rnd.randrange(1, 60)):
            block = rnd.randrange(nblocks)
            count = rnd.randrange(1, nblocks - block + 1) if rnd.random() < 0.3 else 1
            is_zero = count > 1 or rnd.random() < 0.3
            covered.check(block * 2048, count, 0)
            covered.add(block, count, is_zero=is_zero)
            for each in range(block, block + count):
                if each in model:
                    model[each][1] += MIB
                else:
                    model[each] = [not is_zero, 0]
            if rnd.random() < 0.5:
                other = block if is_zero and count == 1 and rnd.random() < 0.5 else rnd.choice(list(model))
                covered.add_pack([(other * MIB + 4096, 4096), (other * MIB + 65536, 512)], number=packs)
                packs += 1
                if other == block and is_zero and count == 1:
                    model[other][0] += 1
                else:
                    model[other][1] += 4608
            farthest = max(farthest, block + count)
        size = found.blocks_per_cell
        while size * diskmap.CELLS < nblocks:
            size *= 2
        expected = looks_of(model, nblocks, size, farthest)
        assert list(found.looks(nblocks)) == expected, f"seed {seed}"
        assert len(expected) <= diskmap.CELLS


def test_a_receiver_sees_rounds_and_what_came_again(tmp_path: Path) -> None:
    """The same blocks that the writer has written between two passes are hot at both ends, and the page shows them."""
    names = ("vda", "vdb")
    disks = {
        name: blkmig.MemoryBackend(bytearray(os.urandom(3 * MIB) + bytes(MIB) + os.urandom(4 * MIB)), name=name)
        for name in names
    }
    recorder = report.Recorder("unix:s", direction="incoming")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {name: tmp_path / name for name in names}, on_progress=recorder)
    kept = receiver.migration.keep_maps()
    recorder.follow(receiver.migration.stats, kept.maps, kept.rounds)
    with blkmig.outgoing(list(disks.values()), receiver.uri) as migration:
        while not migration.threshold_size():
            migration.iterate()
        disks["vda"].pwrite(os.urandom(MIB), 2 * MIB)
        disks["vdb"].pwrite(b"later", 5 * MIB)
        migration.run()
    receiver.result()
    assert list(kept.maps["vda"].looks(8)) == [2, 2, 4, 1, 2, 2, 2, 2]
    assert list(kept.maps["vdb"].looks(8)) == [2, 2, 2, 1, 2, 3, 2, 2]
    assert [each.number for each in kept.rounds] == [0, 1]
    assert sum(each.transferred for each in kept.rounds) <= receiver.migration.stats.transferred
    assert kept.rounds[0].transferred > 13 * MIB
    text = report.page(recorder).decode()
    assert text.count('class="map"') == 2
    assert "came on the wire" in text
    assert "dirtied" not in text
