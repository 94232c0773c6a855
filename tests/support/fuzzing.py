# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutations of bytes, from a seed: what fuzzes where there is no engine that looks at coverage."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

MOST = 1 << 16
"""Nothing becomes longer by being changed."""

STRANGE = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1]


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the `seeds` with one to four changes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        rng.choice(CHANGES)(rng, data, seeds)
    return bytes(data[: max(MOST, *map(len, seeds))])


def _flip(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    nbytes = rng.choice((1, 2, 4, 8))
    value = rng.choice(STRANGE) & ((1 << 8 * nbytes) - 1)
    at = rng.randrange(len(data) + 1)
    data[at : at + nbytes] = value.to_bytes(nbytes, rng.choice(("big", "little")))


def _cut(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 4, 100, len(data)))]


def _repeat(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.randrange(1, 64)]


def _insert(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 16))


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


CHANGES: list[Callable[[random.Random, bytearray, Sequence[bytes]], None]] = [
    _flip,
    _number,
    _cut,
    _repeat,
    _insert,
    _splice,
]
