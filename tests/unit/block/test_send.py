# SPDX-License-Identifier: GPL-2.0-or-later
"""The digests of blocks."""

from blkmig import _core
from blkmig.block import send


def test_the_digest_of_zeros() -> None:
    assert send.digest_of(memoryview(bytes(_core.BLOCK_SIZE))) == send.ZERO_DIGEST
