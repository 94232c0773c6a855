# SPDX-License-Identifier: GPL-2.0-or-later
"""Which extents go together, against a slow model; what both ends count of packs."""

from __future__ import annotations

import itertools
import random

import pytest
import sim

from blkmig import _core, disk
from blkmig.block import coverage, device, packs
from blkmig.disk import geometry

MIB = sim.MIB
GRANULE = 1 << 18  # four to a block, so that a grid of all marks is small


def state_of(size: int, granularity: int) -> device.BlkMigDevState:
    """Return a disk that is being sent, all clean."""
    shape = geometry.BlockGeometry(size)
    bitmap = disk.DirtyBitmap(size, granularity)
    return device.BlkMigDevState(
        backend=sim.LayeredDisk(bytes(1)),
        name=b"d",
        geometry=shape,
        shared_base=False,
        dirty_bitmap=bitmap,
        mapping=None,
        digests=None,
        aio_bitmap=_core.Bitmap(shape.nblocks),
        whole_from=max(2, bitmap.bits_per_block * 3 // 4),
    )


def wanted_of(bmds: device.BlkMigDevState) -> dict[int, str | set[int]]:
    """Return, of each dirty block, whether it goes whole, or where the sectors are that must go: bit by bit."""
    shape, granularity = bmds.geometry, bmds.dirty_bitmap.granularity
    bits_per_block, end = MIB // granularity, shape.total_sectors * 512
    wanted: dict[int, str | set[int]] = {}
    for block in range(shape.nblocks):
        offset, _ = shape.block_range(block)
        marked = [bit for bit in range(bits_per_block) if bmds.dirty_bitmap.bits.test(block * bits_per_block + bit)]
        starts = [offset + bit * granularity for bit in marked]
        if len(marked) >= bmds.whole_from:
            wanted[block] = "whole"
        elif marked:
            wanted[block] = {at for start in starts for at in range(start, min(start + granularity, end), 512)}
    return wanted


def play(bmds: device.BlkMigDevState, most: int) -> tuple[dict[int, str | set[int]], list[device.Pack]]:
    """Go through a round, and return what went of each block, and the packs."""
    went: dict[int, str | set[int]] = {}
    found = []
    block = bmds.dirty_bitmap.next_dirty(0)
    while block >= 0:
        if bmds.dirty_bitmap.take_block_if(block, bmds.whole_from):
            went[block] = "whole"
            block = bmds.dirty_bitmap.next_dirty(block + 1)
            continue
        pack = packs.take(bmds, block, most)
        assert pack is not None
        found.append(pack)
        touched = range(block, block + pack.nblocks)
        for offset, nbytes in pack.extents:
            for at in range(offset, offset + nbytes, 512):
                shape = bmds.geometry
                owner = shape.nblocks - 1 if block == shape.nblocks - 1 else at // MIB
                assert owner in touched
                part = went.setdefault(owner, set())
                assert isinstance(part, set)
                assert at not in part, "a sector goes twice"
                part.add(at)
        assert len(pack.extents) <= 256
        assert pack.nbytes == sum(nbytes for _, nbytes in pack.extents) <= MIB
        assert all(sum(extent) < then[0] for extent, then in itertools.pairwise(pack.extents))
        assert pack.nblocks >= 1
        assert bmds.dirty_bitmap.next_dirty(block) not in touched, "all of them are clean now"
        block = bmds.dirty_bitmap.next_dirty(block + pack.nblocks)
    assert bmds.dirty_bitmap.count_blocks() == 0
    return went, found


@pytest.mark.parametrize("size", [4096 + 512, MIB - 5, MIB, 2 * MIB, 2 * MIB + 700, 3 * MIB])
def test_every_grid_of_marks(size: int) -> None:
    """All ways to mark disks of up to three blocks of four granules."""
    bmds = state_of(size, GRANULE)
    nbits = len(bmds.dirty_bitmap.bits) if size >= MIB else -(-size // GRANULE)
    for marks in itertools.product((False, True), repeat=nbits):
        for bit in itertools.compress(range(nbits), marks):
            bmds.dirty_bitmap.bits.set(bit)
        wanted = wanted_of(bmds)
        assert play(bmds, 256)[0] == wanted, marks
    assert play(bmds, 256) == ({}, [])


@pytest.mark.parametrize("seed", range(60))
def test_walks_of_marks(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice((40_000, MIB, 7 * MIB + 1000, 64 * MIB, 64 * MIB + 77 * 512))
    bmds = state_of(size, rng.choice((4096, 8192, 1 << 16, 1 << 19)))
    most = rng.choice((1, 16, 256))
    for _ in range(3):
        for _ in range(rng.choice((1, 10, 300))):
            offset = rng.randrange(size)
            bmds.dirty_bitmap.mark(offset, rng.choice((1, 4096, 5000, MIB)))
        wanted = wanted_of(bmds)
        went, found = play(bmds, most)
        assert went == wanted, f"seed {seed}"
        for pack in found:
            assert len(pack.extents) < most + 256 * 3 // 4, "one block at most comes on top"


def test_a_pack_ends_before_a_block_that_goes_whole() -> None:
    bmds = state_of(8 * MIB, 4096)
    for block in (0, 1, 3):
        bmds.dirty_bitmap.mark(block * MIB, 4096)
    bmds.dirty_bitmap.mark(2 * MIB, MIB * 3 // 4)
    first = packs.take(bmds, 0, 256)
    assert first == device.Pack([(0, 4096), (MIB, 4096)], 8192, 2)
    assert bmds.dirty_bitmap.count_in_block(2) == 192, "nothing is cleared of what goes whole"
    assert packs.take(bmds, 3, 256) == device.Pack([(3 * MIB, 4096)], 4096, 1)


def test_a_pack_ends_before_a_block_that_is_being_read() -> None:
    """One read in flight for each block, also for one in the middle that is clean."""
    for busy, last in ((1, 0), (2, 0), (3, 2)):
        bmds = state_of(8 * MIB, 4096)
        bmds.aio_bitmap.set(busy)
        for block in (0, 2, 3):
            bmds.dirty_bitmap.mark(block * MIB, 4096)
        pack = packs.take(bmds, 0, 256)
        assert pack is not None
        assert pack.nblocks == last + 1 <= busy


def test_the_last_block_has_marks_of_its_own() -> None:
    """It overlaps its neighbour, so it begins a pack; where it does not overlap, it need not."""
    bmds = state_of(2 * MIB + 4096, 4096)
    bmds.dirty_bitmap.mark(2 * MIB - 4096, 8192)
    assert packs.take(bmds, 1, 256) == device.Pack([(2 * MIB - 4096, 4096)], 4096, 1)
    assert packs.take(bmds, 2, 256) == device.Pack([(2 * MIB - 4096, 8192)], 8192, 1)
    bmds = state_of(3 * MIB, 4096)
    bmds.dirty_bitmap.mark(2 * MIB - 4096, 8192)
    assert packs.take(bmds, 1, 256) == device.Pack([(2 * MIB - 4096, 8192)], 8192, 2)


def test_the_end_of_a_disk_is_a_whole_sector() -> None:
    bmds = state_of(5 * MIB + 1001, 4096)
    bmds.dirty_bitmap.mark(5 * MIB + 1000, 1)
    assert packs.take(bmds, 5, 256) == device.Pack([(5 * MIB + 1024 - 4096, 4096)], 4096, 1)
    bmds = state_of(1001, 4096)
    bmds.dirty_bitmap.mark(1000, 1)
    assert packs.take(bmds, 0, 256) == device.Pack([(0, 1024)], 1024, 1)


def test_writers_that_are_quicker_than_the_count() -> None:
    """What was marked behind the count and has no room stays marked; so does what is over the number of extents."""
    bmds = state_of(8 * MIB, 4096)

    class Quick(disk.DirtyBitmap):
        def take_extents(self, block: int, max_extents: int = 256) -> list[tuple[int, int]]:
            self.mark(block * MIB, MIB)
            return super().take_extents(block, max_extents)

    bitmap = bmds.dirty_bitmap = Quick(8 * MIB, 4096)
    bitmap.mark(0, 4096)
    bitmap.mark(3 * MIB, 4096)
    pack = packs.take(bmds, 0, 256)
    assert pack is not None
    assert pack.extents == [(0, MIB)]
    assert not bitmap.is_dirty(0)
    assert bitmap.is_dirty(3)


def tally_of(*added: tuple[list[tuple[int, int]], int]) -> tuple[int, int]:
    tally = coverage.PackTally()
    for number, (extents, blocks) in enumerate(added):
        tally.add(extents, number=number, blocks=blocks, resent=blocks - 4, resent_sum=0)
    return tally.packs, tally.chain


def test_what_happens_to_packs_shows_in_the_sums() -> None:
    """Dropped, doubled, exchanged, with another's extents, moved past a block: none of it has the same sum."""
    one, other, third = [(0, 512)], [(1024, 512), (4096, 4096)], [(512, 512)]
    sent = tally_of((one, 4), (other, 4), (third, 5))
    changed = {
        "dropped": tally_of((one, 4), (third, 5)),
        "all dropped": tally_of(),
        "doubled": tally_of((one, 4), (one, 4), (other, 4), (third, 5)),
        "exchanged": tally_of((other, 4), (one, 4), (third, 5)),
        "moved before a block": tally_of((one, 4), (other, 4), (third, 4)),
        "moved behind a block": tally_of((one, 4), (other, 5), (third, 5)),
        "another's extents": tally_of((third, 4), (other, 4), (one, 5)),
        "one extent less": tally_of((one, 4), (other[:1], 4), (third, 5)),
        "longer": tally_of(([(0, 1024)], 4), (other, 4), (third, 5)),
    }
    for number, resent_sum in ((0, 7), (1, 0)):
        tally = coverage.PackTally()
        tally.add(one, number=number, blocks=4, resent=0, resent_sum=resent_sum)
        changed[f"behind another block, or another disk's pack {number}"] = tally.packs, tally.chain
    assert sent not in changed.values()
    assert len({*changed.values()}) == len(changed)
