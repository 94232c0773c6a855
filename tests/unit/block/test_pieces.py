# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a block that is compared: whatever is asked and answered, what results is the source's block."""

from __future__ import annotations

import hashlib
import random

import pytest

from blkmig.block import askwords, pieces
from blkmig.savevm import digestwords

MIB = 1 << 20
BASE = 3 * MIB


def hash_of(data: memoryview | bytes) -> bytes:
    return hashlib.sha256(data).digest()


def said_of(old: bytes) -> digestwords.Piece:
    return hash_of(old) if any(old) else digestwords.ZEROS


def answer(compared: pieces.ComparedBlock, old: bytes) -> int:
    """Answer what is asked as a target that holds `old` does; return how many digests that are."""
    ask = askwords.Ask(1, 0, compared.shift, tuple(compared.ranges()))
    wanted = list(ask.pieces(BASE + len(old)))
    assert len(wanted) == compared.asked
    compared.take([said_of(old[offset - BASE : offset - BASE + nbytes]) for offset, nbytes in wanted])
    return len(wanted)


def judged(new: bytes, old: bytes) -> tuple[pieces.Verdict, pieces.ComparedBlock, int]:
    """Return what becomes of a block, and how many digests it took."""
    compared, digests = pieces.ComparedBlock(3, BASE, len(new)), 0
    while True:
        digests += answer(compared, old)
        verdict = compared.judge(memoryview(new), hash_of, is_zero=not any(new))
        if verdict is not pieces.Verdict.FINER:
            return verdict, compared, digests
        compared.split()


def block_of(rng: random.Random, size: int) -> bytearray:
    block = bytearray(rng.randbytes(size))
    block[size // 4 : size // 2] = bytes(size // 2 - size // 4)
    return block


@pytest.mark.parametrize("size", [1, 512, 4096, 5000, 70_000, MIB - 512, MIB])
@pytest.mark.parametrize("seed", range(12))
def test_random_blocks(seed: int, size: int) -> None:
    rng = random.Random(seed)
    new = block_of(rng, size)
    old = bytearray(new)
    for _ in range(rng.randrange(5)):
        nbytes = min(size, rng.choice((1, 4096, 65536, 300_000, MIB)))
        at = rng.randrange(size - nbytes + 1)
        old[at : at + nbytes] = rng.choice((rng.randbytes(nbytes), bytes(nbytes)))
    verdict, compared, _ = judged(new, old)
    if verdict is pieces.Verdict.SAME:
        assert old == new
    elif verdict is pieces.Verdict.PARTS:
        result, settled = bytearray(old), 0
        for offset, nbytes in compared.differing():
            at = offset - BASE
            result[at : at + nbytes] = new[at : at + nbytes]
            settled += nbytes
        assert result == new
        assert all(old[at - BASE : at - BASE + n] == new[at - BASE : at - BASE + n] for at, n in compared.same())
        assert settled + sum(nbytes for _, nbytes in compared.same()) == size
        assert 16 * settled < 15 * size


@pytest.mark.parametrize(
    ("changed", "verdict", "digests"),
    [
        ([], pieces.Verdict.SAME, 1),
        ([(8192, 1)], pieces.Verdict.PARTS, 1 + 16 + 16),
        ([(0, 65536 * 15)], pieces.Verdict.WHOLE, 1 + 16),
        ([(65536 * n, 1) for n in range(11)], pieces.Verdict.PARTS, 1 + 16 + 11 * 16),
    ],
)
def test_what_is_asked(changed: list[tuple[int, int]], verdict: pieces.Verdict, digests: int) -> None:
    new = random.Random(1).randbytes(MIB)
    old = bytearray(new)
    for at, nbytes in changed:
        old[at : at + nbytes] = bytes(255 - byte for byte in old[at : at + nbytes])
    found, compared, asked = judged(new, old)
    assert (found, asked) == (verdict, digests)
    if found is pieces.Verdict.PARTS:
        assert sum(nbytes for _, nbytes in compared.differing()) == 4096 * len(changed)


@pytest.mark.parametrize("said", [digestwords.ZEROS, digestwords.UNREAD])
def test_nothing_finer_is_asked_where_the_target_has_nothing(said: digestwords.Piece) -> None:
    compared = pieces.ComparedBlock(3, BASE, MIB)
    compared.take([said])
    assert compared.judge(memoryview(b"x" * MIB), hash_of, is_zero=False) is pieces.Verdict.WHOLE


def test_zeros_go_as_a_record() -> None:
    verdict, _, digests = judged(bytes(MIB), b"x" * MIB)
    assert (verdict, digests) == (pieces.Verdict.WHOLE, 1)


def test_a_block_that_changes_while_it_is_asked_about() -> None:
    """Each copy is judged by all that is known, so that one which was equal may differ later, and the other way."""
    old = random.Random(1).randbytes(MIB)
    compared = pieces.ComparedBlock(3, BASE, MIB)
    answer(compared, old)
    changed = b"x" + old[1:]
    assert compared.judge(memoryview(changed), hash_of, is_zero=False) is pieces.Verdict.FINER
    compared.split()
    answer(compared, old)
    assert compared.judge(memoryview(changed), hash_of, is_zero=False) is pieces.Verdict.FINER
    compared.split()
    answer(compared, old)
    later = old[:-1] + bytes([255 - old[-1]])
    assert compared.judge(memoryview(later), hash_of, is_zero=False) is pieces.Verdict.PARTS
    assert compared.differing() == [(BASE + MIB - 65536, 65536)]
    assert compared.judge(memoryview(old), hash_of, is_zero=False) is pieces.Verdict.SAME
