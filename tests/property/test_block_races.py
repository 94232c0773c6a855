# SPDX-License-Identifier: GPL-2.0-or-later
"""Writers that strike at every moment: around each read, each question about holes, each record that is sent.

All of it happens in one thread, so a seed is a whole interleaving, and the ones that lose data under a wrong order
are found in milliseconds: the negative controls at the end show that.
"""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import pytest
import sim

from blkmig import params
from blkmig.block import BlockSaveHandlers, bulk, holes, reads, save, send

MIB = sim.MIB
SIZES = (512, 1000, MIB - 512, MIB, MIB + 512, 5 * MIB // 2, 4 * MIB, 5 * MIB + 1536)


def play(seed: int, monkeypatch: pytest.MonkeyPatch, *, packs: bool = False) -> bool:
    """Migrate random disks under random writes; return whether all targets are equal to their disks in the end."""
    rng = random.Random(seed)
    with_base = rng.random() < 0.4
    disks, images = [], {}
    for number in range(rng.choice((1, 1, 2, 3))):
        size = rng.choice(SIZES)
        base = bytes([rng.choice((0, 98))]) * size
        disk = sim.LayeredDisk(base, base=base if with_base else None, name=f"d{number}")
        for _ in range(rng.randrange(4)):
            disk.random_write(rng)
        disk.longest_answer = rng.choice((sim.CLUSTER, MIB, 1 << 30))
        disks.append(disk)
        images[disk.name.encode()] = bytearray(base if with_base else b"\xff" * size)
    rate = rng.choice((0.02, 0.1, 0.3))

    def step() -> None:
        if rng.random() < rate:
            rng.choice(disks).random_write(rng)

    parameters = params.MigrationParameters(
        shared_base=with_base, zero_blocks=rng.random() < 0.8, granularity=rng.choice((MIB, 1 << 16, 1 << 12))
    )
    wire, handlers = sim.Wire(images), BlockSaveHandlers(disks, parameters)
    f: Any = wire
    with monkeypatch.context() as patch:
        if rng.random() < 0.7:
            shuffled = sim.ShuffledReads(rng, max_parallel=rng.choice((1, 2, 5)), max_buffers=rng.choice((1, 3, 8)))
            patch.setattr(reads, "InlineReads", lambda *, payload: shuffled)
        handlers.save_setup(f)
    if packs:
        for bmds in handlers.blk_mig.bmds_list:
            bmds.whole_from = rng.choice((2, 1 + bmds.dirty_bitmap.bits_per_block * 3 // 4))
    wire.step = step
    for disk in disks:
        disk.step = step
    for _ in range(rng.randrange(4)):
        handlers.save_live_iterate(f)
    for disk in disks:
        disk.hold_writers()
    handlers.save_live_complete_precopy(f)
    assert handlers.save_live_pending() == 0
    assert handlers.blk_mig.submitted == handlers.blk_mig.read_done == 0
    assert handlers.blk_mig.bytes_remaining() == 0
    assert wire.progress()[:-1] == sorted(set(wire.progress()[:-1]))
    assert handlers.blk_mig.pack_bytes == sum(nbytes for _, extents in wire.packs for _, nbytes in extents)
    handlers.save_cleanup()
    check_packs(wire)
    return all(images[disk.name.encode()] == disk.image for disk in disks)


def check_packs(wire: sim.Wire) -> None:
    """Each pack is one that a receiver takes."""
    for name, extents in wire.packs:
        total = len(wire.images[name]) + 511 & -512
        assert 1 <= len(extents) <= 256
        assert sum(nbytes for _, nbytes in extents) <= MIB
        assert all((offset | nbytes) % 512 == 0 and nbytes for offset, nbytes in extents)
        assert all(sum(extent) < then[0] for extent, then in itertools.pairwise(extents)), "neighbours are one extent"
        assert sum(extents[-1]) <= total


@pytest.mark.parametrize("part", range(4))
def test_no_write_is_lost_in_packs(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    for seed in range(part * 100, part * 100 + 100):
        assert play(seed, monkeypatch, packs=True), f"seed {seed} lost a write"


@pytest.fixture
def short_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """End each section after its first step, so that sections fall between all the others."""
    monkeypatch.setattr(save, "SECTION_SECONDS", -1.0)


@pytest.mark.parametrize("part", range(4))
def test_no_write_is_lost(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    first = int(os.environ.get("BLKMIG_SEED", "0"))
    count = int(os.environ.get("BLKMIG_SEEDS", "100"))
    for seed in range(first + part * count, first + (part + 1) * count):
        assert play(seed, monkeypatch), f"seed {seed} lost a write"


@pytest.mark.usefixtures("short_sections")
def test_no_write_is_lost_in_short_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1000, 1080):
        assert play(seed, monkeypatch, packs=seed % 2 == 0), f"seed {seed} lost a write"


# -- negative controls: each wrong order is noticed --------------------------------------------------------------------


def ask_then_clear(bmds: Any, block: int) -> int:
    """Take a hole the wrong way round: what is written between the answer and the clearing is lost."""
    count = bulk.hole_blocks(bmds, block)
    bmds.backend.step()
    bmds.dirty_bitmap.take_blocks(block, count)
    return count


def read_then_clear(blk_mig: Any, bmds: Any, block: int, blk: Any, pack: Any = None) -> None:
    """Clear the bits after the read, as QEMU did until 2.12."""
    original_submit(blk_mig, bmds, block, blk, pack)
    bmds.dirty_bitmap.take_blocks(block, blk.nblocks)


def ask_in_a_block_then_clear(blk_mig: Any, bmds: Any, block: int) -> Any:
    """Look for holes within a block the wrong way round."""
    pack = original_take(blk_mig, bmds, block)
    bmds.backend.step()
    bmds.dirty_bitmap.take_block(block)
    return pack


original_submit, original_take = send.submit, holes.take


@pytest.mark.parametrize(
    ("module", "name", "wrong", "packs"),
    [
        (bulk, "take_hole", ask_then_clear, False),
        (bulk, "take_hole", ask_then_clear, True),
        (send, "submit", read_then_clear, False),
        (send, "submit", read_then_clear, True),
        (holes, "take", ask_in_a_block_then_clear, True),
    ],
)
def test_a_wrong_order_is_noticed(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, wrong: Any, packs: bool
) -> None:
    monkeypatch.setattr(module, name, wrong)
    assert not all(play(seed, monkeypatch, packs=packs) for seed in range(600))
