# SPDX-License-Identifier: GPL-2.0-or-later
"""Every verb of the dirty bitmap against the obvious model: the pieces of each block that are marked, as a set."""

from __future__ import annotations

import dataclasses
import random

import pytest

from blkmig.disk import dirty

MiB = 1 << 20
SIZES = [1, 512, 4097, 70_000, MiB - 512, MiB, MiB + 512, 2 * MiB + 4608, 5 * MiB + 123_456]


class Model:
    """A set of (block, piece of the block)."""

    def __init__(self, bitmap: dirty.DirtyBitmap) -> None:
        self.bitmap = bitmap
        self.shape = bitmap.geometry
        self.granularity = bitmap.granularity
        self.pieces: set[tuple[int, int]] = set()

    def all_of(self, block: int) -> set[tuple[int, int]]:
        return {(block, piece) for piece in range(MiB // self.granularity)}

    def of_write(self, offset: int, nbytes: int) -> set[tuple[int, int]]:
        """Return what a write of bytes that are inside the disk marks."""
        found = set()
        for block in range(self.shape.nblocks):
            start, length = self.shape.block_range(block)
            for piece in range(-(-length // self.granularity)):
                first = start + piece * self.granularity
                if first < offset + nbytes and offset < min(first + self.granularity, start + length):
                    found.add((block, piece))
        return found

    def nbytes(self, block: int, piece: int) -> int:
        """Return how many bytes of the disk a piece has."""
        first = self.shape.block_range(block)[0] + piece * self.granularity
        return max(0, min(first + self.granularity, self.shape.size) - first)

    def extents(self, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the extents of pieces of one block, those together that touch."""
        found: list[tuple[int, int]] = []
        for block, piece in sorted(pieces):
            first = self.shape.block_range(block)[0] + piece * self.granularity
            if not self.nbytes(block, piece):
                continue
            if found and sum(found[-1]) == first:
                found[-1] = found[-1][0], found[-1][1] + self.nbytes(block, piece)
            else:
                found.append((first, self.nbytes(block, piece)))
        return found

    def of_block(self, block: int) -> list[tuple[int, int]]:
        return sorted(found for found in self.pieces if found[0] == block)

    def rounded(self, enough: int, stop: int) -> int:
        total = 0
        for block in range(min(stop, self.shape.nblocks)):
            count = len(self.of_block(block))
            total += MiB if count >= enough else count * self.granularity
        return total

    def check(self, rng: random.Random, where: object) -> None:
        """All that can be asked is what the model says."""
        nblocks, marked = self.shape.nblocks, {block for block, _ in self.pieces}
        bitmap, start = self.bitmap, rng.randrange(nblocks)
        assert bitmap.count_bytes() == sum(self.nbytes(*piece) for piece in self.pieces), where
        assert bitmap.count_blocks() == len(marked), where
        assert bitmap.count_in_block(start) == len(self.of_block(start)), where
        assert bitmap.is_dirty(start) == (start in marked), where
        assert bitmap.next_dirty(start) == min((block for block in marked if block >= start), default=-1), where
        n = MiB // self.granularity
        for enough in (1, -(-n * 3 // 4), n, n + 1):
            assert bitmap.count_bytes_rounded(enough) == self.rounded(enough, nblocks), where
            assert bitmap.count_bytes_rounded(enough, stop_block=start) == self.rounded(enough, start), where


@dataclasses.dataclass
class Walk:
    """Verbs in any order, done to the bitmap and to the model."""

    rng: random.Random
    bitmap: dirty.DirtyBitmap
    model: Model

    def mark(self) -> None:
        size = self.model.shape.size
        near = self.rng.choice((0, size, self.model.shape.last_offset, self.rng.randrange(size)))
        offset = near + self.rng.randrange(-9000, 9000)
        nbytes = self.rng.choice((1, 512, 4096, self.rng.randrange(1, size + 1)))
        self.bitmap.mark(offset, nbytes)
        sectors = self.model.shape.total_sectors * 512
        start, end = max(offset, 0), min(offset + nbytes, sectors)
        if start < end:
            self.model.pieces |= self.model.of_write(start, end - start)

    def mark_areas(self) -> None:
        sectors = self.model.shape.total_sectors * 512
        areas = [(self.rng.randrange(-5000, sectors + 5000), self.rng.randrange(-5, 20_000)) for _ in range(5)]
        self.bitmap.mark_areas(iter(areas))
        for offset, nbytes in areas:
            start, end = max(offset, 0), min(offset + nbytes, sectors)
            if start < end:
                self.model.pieces |= self.model.of_write(start, end - start)

    def mark_block(self) -> None:
        block = self.block()
        self.bitmap.mark_block(block)
        self.model.pieces |= self.model.all_of(block)

    def mark_all(self) -> None:
        self.bitmap.mark_all()
        for block in range(self.bitmap.nblocks):
            self.model.pieces |= self.model.all_of(block)

    def merge(self) -> None:
        other = dirty.DirtyBitmap(self.model.shape.size, self.model.granularity)
        offset = self.rng.randrange(self.model.shape.size)
        other.mark(offset, 5000)
        self.bitmap.merge(other)
        sectors = self.model.shape.total_sectors * 512
        self.model.pieces |= self.model.of_write(offset, min(5000, sectors - offset))

    def take_block(self) -> None:
        block = self.block()
        assert self.bitmap.take_block(block) == bool(self.model.of_block(block))
        self.model.pieces -= self.model.all_of(block)

    def take_blocks(self) -> None:
        start, stop = sorted(self.rng.choices(range(self.bitmap.nblocks + 1), k=2))
        taken = {piece for piece in self.model.pieces if start <= piece[0] < stop}
        assert self.bitmap.take_blocks(start, stop - start) == bool(taken)
        self.model.pieces -= taken

    def take_extents(self) -> None:
        block, most = self.block(), self.rng.choice((1, 2, 256))
        found = self.model.of_block(block)
        expected = self.model.extents(found)
        taken = self.bitmap.take_extents(block, most)
        assert taken == expected[:most]
        end = sum(taken[-1]) if len(expected) > most else 1 << 62
        start = self.model.shape.block_range(block)[0]
        self.model.pieces -= {piece for piece in found if start + piece[1] * self.model.granularity < end}

    def take_areas(self) -> None:
        taken = []
        while areas := self.bitmap.take_areas(self.rng.choice((1, 2, 256))):
            taken += areas
        in_last = self.model.of_block(self.bitmap.nblocks - 1)
        below = sorted(self.model.pieces - set(in_last))
        assert sum(nbytes for _, nbytes in taken) == sum(self.model.nbytes(*piece) for piece in below + in_last)
        covered = [0] * (self.model.shape.size // 512 + 1)
        for offset, nbytes in taken:
            for sector in range(offset // 512, -(-(offset + nbytes) // 512)):
                covered[sector] += 1
        for offset, nbytes in self.model.extents(below) + self.model.extents(in_last):
            for sector in range(offset // 512, -(-(offset + nbytes) // 512)):
                covered[sector] -= 1
        assert not any(covered)
        self.model.pieces.clear()

    def block(self) -> int:
        return self.rng.randrange(self.bitmap.nblocks)


VERBS = (
    [Walk.mark] * 10
    + [Walk.take_extents] * 4
    + [Walk.mark_areas] * 3
    + [Walk.mark_block, Walk.mark_all, Walk.merge, Walk.take_block, Walk.take_blocks, Walk.take_areas]
)


@pytest.mark.parametrize("granularity", [1 << 12, 1 << 16, 1 << 19, 1 << 20])
@pytest.mark.parametrize("size", SIZES)
def test_every_verb_does_what_the_model_does(size: int, granularity: int) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    bitmap = dirty.DirtyBitmap(size, granularity)
    walk = Walk(rng, bitmap, Model(bitmap))
    for step in range(60):
        verb = rng.choice(VERBS)
        where = (f"seed {seed}", step, verb.__name__)
        try:
            verb(walk)
        except AssertionError as error:
            raise AssertionError(where) from error
        walk.model.check(rng, where)


def test_more_extents_than_one_asks_for_stay_marked() -> None:
    bitmap = dirty.DirtyBitmap(3 * MiB, 4096)
    for offset in range(MiB, 2 * MiB, 8192):
        bitmap.mark(offset, 1)
    assert bitmap.take_extents(1, 100) == [(MiB + i * 8192, 4096) for i in range(100)]
    assert bitmap.count_in_block(1) == 28
    assert bitmap.take_extents(1) == [(MiB + i * 8192, 4096) for i in range(100, 128)]
    assert bitmap.take_extents(1) == []


def test_the_last_block_counts_from_where_it_starts() -> None:
    bitmap = dirty.DirtyBitmap(2 * MiB + 512 + 100, 4096)
    assert bitmap.block_range(2) == (MiB + 1024, MiB)
    bitmap.mark(2 * MiB + 512, 1)
    assert bitmap.take_extents(1) == []
    assert bitmap.take_extents(2) == [(2 * MiB - 3072, 3684)]  # it ends with the disk, not with its sector
    bitmap.mark(2 * MiB - 1, 1)
    assert bitmap.take_extents(1) == [(2 * MiB - 4096, 4096)]
    assert bitmap.take_extents(2) == [(2 * MiB - 3072, 3684)]
