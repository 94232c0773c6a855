# SPDX-License-Identifier: GPL-2.0-or-later
"""What zeros and packs have saved, by the records alone."""

from __future__ import annotations

import pytest

from blkmig.block import savings
from blkmig.disk import BlockGeometry, Extents

MIB = 1 << 20
EVEN, ODD = BlockGeometry(4 * MIB), BlockGeometry(3 * MIB + 4096)


@pytest.mark.parametrize(
    ("shape", "extents", "blocks"),
    [
        (EVEN, [(0, 512)], 1),
        (EVEN, [(0, 512), (8192, 512)], 1),
        (EVEN, [(MIB - 512, 1024)], 2),
        (EVEN, [(0, 512), (MIB - 512, 1024), (2 * MIB, 512)], 3),
        (EVEN, [(512, 2 * MIB)], 3),
        (ODD, [(2 * MIB + 8192, 512), (3 * MIB, 4096)], 1),
        (ODD, [(MIB, 512), (2 * MIB, 512)], 2),
    ],
)
def test_a_pack_saves_the_rest_of_its_blocks(shape: BlockGeometry, extents: Extents, blocks: int) -> None:
    saved, nbytes = savings.Savings(), sum(nbytes for _, nbytes in extents)
    saved.pack_went(extents, nbytes, shape, blocks=9)
    assert (saved.by_zeros, saved.by_granularity) == (0, blocks * MIB - nbytes)


def test_the_data_of_a_block_with_holes_takes_from_what_zeros_saved() -> None:
    saved = savings.Savings()
    saved.zeros_went(0, 3, blocks=3)
    saved.pack_went([(2 * MIB + 512, 512)], 512, EVEN, blocks=3)
    assert (saved.by_zeros, saved.by_granularity) == (3 * MIB - 512, 0)
    saved.pack_went([(2 * MIB + 512, 512)], 512, EVEN, blocks=3)
    assert (saved.by_zeros, saved.by_granularity) == (3 * MIB - 512, MIB - 512), "the next one is no part of it"
    saved.zeros_went(1, 1, blocks=4)
    saved.pack_went([(MIB, 512)], 512, EVEN, blocks=5)
    assert saved.by_zeros == 4 * MIB - 512, "a block came between them"
