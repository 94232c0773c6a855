# SPDX-License-Identifier: GPL-2.0-or-later
"""Where blocks lie, against the slow way: look at every block."""

import itertools
import random

import pytest

from blkmig.disk import geometry

MiB = 1 << 20
SIZES = [
    *(0, 1, 511, 512, 513, 1000, 512 * 3),
    *(MiB + delta for delta in (-1000, -512, -1, 0, 1, 512, 1000)),
    *(2 * MiB + delta for delta in (-512, -1, 0, 1, 512)),
    *(7 * MiB, 7 * MiB + 512 * 77, 7 * MiB + 300_001),
]


def overlapping(shape: geometry.BlockGeometry, offset: int, nbytes: int) -> list[int]:
    """Return the blocks that share a byte with the range, found one by one."""
    ranges = [shape.block_range(block) for block in range(shape.nblocks)]
    return [
        block
        for block, (start, length) in enumerate(ranges)
        if max(start, offset) < min(start + length, offset + nbytes)
    ]


@pytest.mark.parametrize("size", SIZES)
def test_blocks_cover_the_disk_and_nothing_else(size):
    shape = geometry.BlockGeometry(size)
    assert shape.total_sectors == (size + 511) // 512
    assert shape.nblocks == (shape.total_sectors + 2047) // 2048
    end = 0
    for block in range(shape.nblocks):
        offset, nbytes = shape.block_range(block)
        assert offset % 512 == 0
        assert nbytes == min(MiB, shape.total_sectors * 512)
        assert offset <= end < offset + nbytes
        assert offset == block * MiB or block == shape.nblocks - 1
        end = offset + nbytes
    assert end == shape.total_sectors * 512


@pytest.mark.parametrize("size", SIZES)
def test_blocks_covering_a_range(size):
    shape = geometry.BlockGeometry(size)
    edges = {0, 1, size, size - 1, shape.last_offset, 3 * MiB, -5, size + 700, size + 3 * MiB}
    edges |= {edge + delta for edge in (shape.last_offset, MiB, 2 * MiB, size) for delta in (-513, -1, 1, 512)}
    for offset, end in itertools.product(sorted(edges), repeat=2):
        nbytes = end - offset
        assert list(shape.blocks_covering(offset, nbytes)) == overlapping(shape, offset, nbytes), (offset, end)


def test_blocks_covering_random_ranges():
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(3000):
        shape = geometry.BlockGeometry(rng.randrange(9 * MiB))
        offset, nbytes = rng.randrange(-MiB, 10 * MiB), rng.randrange(3 * MiB)
        found = list(shape.blocks_covering(offset, nbytes))
        assert found == overlapping(shape, offset, nbytes), f"seed {seed}: {shape} {offset} {nbytes}"


@pytest.mark.parametrize("size", SIZES)
def test_block_of_a_sector(size):
    shape = geometry.BlockGeometry(size)
    starts = {shape.block_range(block)[0] // 512: block for block in range(shape.nblocks)}
    starts |= {block * 2048: block for block in range(shape.nblocks)}  # QEMU's short last block
    near = {sector + delta for sector in starts for delta in (-2048, -1, 0, 1, 2048)} | {1 << 55}
    assert {sector: shape.block_of(sector) for sector in near} == {sector: starts.get(sector) for sector in near}


def test_clip_stops_at_the_exact_size():
    shape = geometry.BlockGeometry(MiB + 1000)
    offset, nbytes = shape.block_range(1)
    assert (offset, nbytes) == (1024, MiB)
    assert shape.clip(offset, nbytes) == MiB - 24
    assert shape.clip(0, 10) == 10
    assert shape.clip(MiB + 1000, 10) == shape.clip(5 * MiB, 10) == 0


def test_blocks_outside_are_refused():
    shape = geometry.BlockGeometry(2 * MiB)
    for block in (-1, 2):
        with pytest.raises(IndexError):
            shape.block_range(block)
    with pytest.raises(ValueError, match="cannot have -1 bytes"):
        geometry.BlockGeometry(-1)


def test_it_is_arithmetic_whatever_the_size():
    shape = geometry.BlockGeometry((1 << 62) + 512)
    assert shape.nblocks == (1 << 42) + 1
    assert shape.block_range(shape.nblocks - 1) == ((1 << 62) + 512 - MiB, MiB)
    assert shape.blocks_covering(0, 1 << 63) == range(shape.nblocks)
    with pytest.raises(AttributeError):
        shape.size = 1
    assert shape == geometry.BlockGeometry((1 << 62) + 512)
