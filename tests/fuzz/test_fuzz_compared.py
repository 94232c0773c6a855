# SPDX-License-Identifier: GPL-2.0-or-later
"""ASK, SAME and DIGEST with any damage: what is not as it must be is a stream error, and nothing else."""

from __future__ import annotations

import random

import pytest

from blkmig import errors
from blkmig.block import askwords, table
from blkmig.savevm import digestwords

MIB = 1 << 20
DISKS = [table.TableDisk(b"a", 5 * MIB + 1000), table.TableDisk(b"empty", 0), table.TableDisk(b"b", 3 * MIB)]


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return `data` with a bit flipped, bytes cut, doubled, or replaced."""
    at = rng.randrange(len(data))
    act = rng.randrange(4)
    if act == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if act == 1:
        return data[:at]
    if act == 2:
        return data + data[at:]
    return rng.randbytes(rng.randrange(80))


def random_digest(rng: random.Random) -> digestwords.Digest:
    kinds = [digestwords.ZEROS, digestwords.UNREAD, rng.randbytes(32), rng.randbytes(32)][: rng.randrange(1, 5)]
    return digestwords.Digest(rng.randrange(1 << 32), tuple(rng.choice(kinds) for _ in range(rng.randrange(1, 513))))


@pytest.mark.parametrize("seed", range(300))
def test_digest(seed: int) -> None:
    rng = random.Random(seed)
    answer = random_digest(rng)
    data = answer.encode()
    low, high = digestwords.LENGTHS[digestwords.MIG_RP_MSG_DIGEST]
    assert low <= len(data) <= high
    assert digestwords.parse_digest(data, 0) == answer
    broken = damaged(rng, data)
    if broken != data and len(broken) >= low:
        try:
            found = digestwords.parse_digest(broken, 0)
        except errors.StreamError:
            return
        assert found.pieces == answer.pieces  # the checksum is over them; the number is compared by whoever has asked


@pytest.mark.parametrize("seed", range(300))
def test_ask(seed: int) -> None:
    rng = random.Random(seed)
    shift = rng.choice(askwords.SHIFTS)
    start = rng.randrange(3) << shift
    ask = askwords.Ask(7, rng.choice((0, 2)), shift, ((start, 1), (start + (2 << shift) if shift < 20 else 3 << 20, 1)))
    ask = ask if ask.disk == 0 or shift < 20 else askwords.Ask(7, 2, shift, ((0, 3),))
    assert askwords.parse_ask(ask.encode(), DISKS, 0) == ask
    try:
        found = askwords.parse_ask(damaged(rng, ask.encode()), DISKS, 0)
    except errors.StreamError:
        return
    pieces = list(found.pieces(DISKS[found.disk].size))
    assert 0 < len(pieces) <= digestwords.MAX_PIECES
    assert all(nbytes > 0 and offset + nbytes <= DISKS[found.disk].size for offset, nbytes in pieces)


@pytest.mark.parametrize("seed", range(300))
def test_same(seed: int) -> None:
    rng = random.Random(seed)
    ranges = [(0, 4096), (8192, MIB), (3 * MIB, 2 * MIB + 1000)]
    body = askwords.encode_same(0, ranges)
    assert askwords.parse_same(body, DISKS, 0) == (0, ranges)
    try:
        index, found = askwords.parse_same(damaged(rng, body), DISKS, 0)
    except errors.StreamError:
        return
    size, end = DISKS[index].size, 0
    for offset, nbytes in found:
        assert end <= offset < offset + nbytes <= size
        assert offset % 4096 == 0
        assert (offset + nbytes) % 4096 == 0 or offset + nbytes == size
        end = offset + nbytes


@pytest.mark.parametrize(
    "ask",
    [
        askwords.Ask(1, 1, 20, ((0, 1),)),
        askwords.Ask(1, 3, 20, ((0, 1),)),
        askwords.Ask(1, 0, 13, ((0, 1),)),
        askwords.Ask(1, 0, 20, ((4096, 1),)),
        askwords.Ask(1, 0, 20, ((0, 7),)),
        askwords.Ask(1, 0, 20, ((0, 0),)),
        askwords.Ask(1, 0, 20, ((0, 1 << 31),)),
        askwords.Ask(1, 0, 12, ((0, 513),)),
        askwords.Ask(1, 0, 20, ((1 << 20, 1), (0, 1))),
        askwords.Ask(1, 0, 20, ((0, 2), (1 << 20, 1))),
        askwords.Ask(1, 0, 20, ((1 << 63, 1),)),
        askwords.Ask(1, 0, 20, ()),
    ],
)
def test_questions_that_nobody_asks(ask: askwords.Ask) -> None:
    with pytest.raises(errors.StreamError, match="ASK is damaged"):
        askwords.parse_ask(ask.encode(), DISKS, 0)


@pytest.mark.parametrize(
    ("index", "ranges"),
    [
        (1, [(0, 4096)]),
        (9, [(0, 4096)]),
        (0, []),
        (0, [(0, 0)]),
        (0, [(1, 4096)]),
        (0, [(0, 4095)]),
        (0, [(0, 6 * MIB)]),
        (0, [(4096, 4096), (0, 4096)]),
        (0, [(0, 8192), (4096, 4096)]),
        (0, [((1 << 64) - 4096, 4096)]),
        (0, [(4096 * n, 4096) for n in range(4097)]),
    ],
)
def test_what_nobody_says_is_the_same(index: int, ranges: list[askwords.Range]) -> None:
    with pytest.raises(errors.StreamError, match="SAME is damaged"):
        askwords.parse_same(askwords.encode_same(index, ranges), DISKS, 0)
