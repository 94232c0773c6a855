# SPDX-License-Identifier: GPL-2.0-or-later
"""What a digest vouches for, against a model that keeps a set of granules."""

from __future__ import annotations

import random

import pytest

from blkmig import errors
from blkmig.block import vouched

MIB = 1 << 20
PAGE = 4096
SIZES = (1, PAGE, PAGE + 1, MIB, MIB + 1, 2 * MIB + 5000, 5 * MIB - 512)


class Model:
    """Granules that are vouched for, and that have come, of a disk of which each block was read or not."""

    def __init__(self, size: int) -> None:
        self.granules = -(-size // PAGE)
        self.size = size
        self.vouched: set[int] = set()
        self.came: set[int] = set()

    def of(self, block: int) -> set[int]:
        return set(range(block * 256, min((block + 1) * 256, self.granules)))

    def touched(self, offset: int, nbytes: int) -> set[int]:
        return set(range(offset // PAGE, -(-(offset + nbytes) // PAGE)))

    def filled(self, offset: int, nbytes: int) -> set[int]:
        end = offset + nbytes
        return set(range(-(-offset // PAGE), self.granules if end >= self.size else end // PAGE))


@pytest.mark.parametrize("seed", range(40))
def test_random_walks(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice(SIZES)
    model, subject = Model(size), vouched.Vouched(size)
    nblocks = -(-size // MIB)
    closed: set[int] = set()
    for _ in range(200):
        act, block = rng.randrange(4), rng.randrange(nblocks)
        if act == 0:
            subject.read(block)
            model.vouched |= model.of(block)
            model.came -= model.of(block)
            continue
        if act == 1:
            offset = rng.randrange(size)
            nbytes = rng.randrange(1, min(size - offset, rng.choice((600, 9000, 3 * MIB))) + 1)
            known = {one for one in range(nblocks) if model.of(one) & (model.vouched | model.came)}
            model.vouched -= model.touched(offset, nbytes)
            model.came |= {one for one in model.filled(offset, nbytes) if one // 256 in known}
            closed.update(subject.written(offset, nbytes))
        else:
            offset = rng.randrange(model.granules) * PAGE
            nbytes = min(size - offset, rng.choice((1, 2, 255, 256, 700)) * PAGE)
            wanted = model.touched(offset, nbytes)
            if not wanted <= model.vouched:
                with pytest.raises(errors.StreamError, match="no digest"):
                    subject.settle(offset, nbytes, 7)
                return
            model.vouched -= wanted
            model.came |= wanted
            closed.update(subject.settle(offset, nbytes, 7))
        for one in range(nblocks):
            if model.of(one) <= model.came:
                assert one in closed
                model.came -= model.of(one)
                model.vouched -= model.of(one)
                closed.discard(one)
        assert not closed


def test_a_digest_settles_once() -> None:
    subject = vouched.Vouched(4 * MIB)
    subject.read(1)
    assert subject.settle(MIB, MIB, 0) == [1]
    with pytest.raises(errors.StreamError):
        subject.settle(MIB, MIB, 0)


def test_what_was_written_is_not_the_same() -> None:
    subject = vouched.Vouched(4 * MIB)
    subject.read(0)
    assert subject.written(PAGE, 1) == []
    assert subject.settle(0, PAGE, 0) == []
    with pytest.raises(errors.StreamError):
        subject.settle(PAGE, PAGE, 0)


def test_a_part_of_a_granule_does_not_come_by_itself() -> None:
    subject = vouched.Vouched(2 * PAGE)
    subject.read(0)
    assert subject.settle(PAGE, PAGE, 0) == []
    assert subject.written(0, 512) == []
    assert subject.written(512, PAGE - 512) == []
    assert subject.written(0, PAGE) == [0]


def test_blocks_that_are_left_open() -> None:
    subject = vouched.Vouched(100 * MIB)
    for block in range(vouched.MAX_OPEN + 1):
        subject.check(0)
        subject.read(block)
        subject.written(block * MIB, PAGE)
    with pytest.raises(errors.StreamError, match="parts of 65 blocks"):
        subject.check(0)
