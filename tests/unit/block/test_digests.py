# SPDX-License-Identifier: GPL-2.0-or-later
"""The digests of blocks and of disks."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest

from blkmig import _core
from blkmig.block import digests

SIZE = digests.DIGEST_SIZE


def test_the_digest_of_zeros() -> None:
    assert digests.digest_of(memoryview(bytes(_core.BLOCK_SIZE))) == digests.ZERO_DIGEST


@pytest.mark.parametrize("nblocks", [0, 1, 2, 255, 256, 257, 65536, 65537, 70000])
def test_a_tree_that_is_kept_current_is_the_tree_of_what_there_is(nblocks: int) -> None:
    rng, leaves = random.Random(nblocks), bytearray(nblocks * SIZE)
    tree = digests.DigestTree(leaves)
    assert tree.root() == digests.tree_of(leaves)
    for _ in range(3):
        for _ in range(min(nblocks, 20)):
            count = rng.randrange(1, min(nblocks, 600) + 1)
            block = rng.randrange(nblocks - count + 1)
            leaves[block * SIZE : (block + count) * SIZE] = rng.randbytes(count * SIZE)
            tree.changed(block, count)
            if rng.random() < 0.3:
                tree.settle()
        assert tree.root() == digests.tree_of(leaves)


def test_each_block_counts_and_so_does_their_number() -> None:
    leaves = bytearray(random.Random(1).randbytes(300 * SIZE))
    roots = {digests.tree_of(leaves), digests.tree_of(leaves[:-SIZE]), digests.tree_of(leaves + bytes(SIZE))}
    for block in (0, 255, 256, 299):
        changed = bytearray(leaves)
        changed[block * SIZE] ^= 1
        roots.add(digests.tree_of(changed))
    assert len(roots) == 7


def test_what_is_hashed_after_a_change_does_not_grow_with_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """B2: three nodes for a disk of 1 TiB, where the flat digest takes all 16 MiB."""
    leaves = bytearray((1 << 20) * SIZE)
    tree = digests.DigestTree(leaves)
    hashed: list[int] = []
    blake2b = hashlib.blake2b

    def counted(data: memoryview, **options: Any) -> Any:
        hashed.append(len(data))
        return blake2b(data, **options)

    monkeypatch.setattr(hashlib, "blake2b", counted)
    leaves[:SIZE] = b"x" * SIZE
    tree.changed(0)
    tree.root()
    assert len(hashed) == 3
    assert max(hashed) <= digests.FANOUT * digests.NODE_SIZE
