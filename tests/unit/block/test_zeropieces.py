# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a pack's payload is zeros and does not travel: against slices, and what is no such record."""

from __future__ import annotations

import random
from pathlib import Path

import lab
import pytest

from blkmig import _core, errors
from blkmig.block import zeropieces

PIECE = zeropieces.PIECE


def slow_find(payload: bytes, extents: list[tuple[int, int]]) -> bytes:
    """Look at each sector, and where it is."""
    zero: dict[tuple[int, int], bool] = {}
    at = 0
    for number, (offset, nbytes) in enumerate(extents):
        for sector in range(offset, offset + nbytes, 512):
            key = number, sector // PIECE
            zero[key] = zero.get(key, True) and not any(payload[at : at + 512])
            at += 512
    bits = list(zero.values())
    if not any(bits):
        return b""
    bits += [False] * (-len(bits) % 8)
    return bytes(int("".join("01"[bit] for bit in bits[start : start + 8]), 2) for start in range(0, len(bits), 8))


def random_extents(rng: random.Random) -> list[tuple[int, int]]:
    unit = rng.choice((512, PIECE))
    extents: list[tuple[int, int]] = []
    end, left = 0, 1 << 20
    while left and len(extents) < rng.choice((1, 3, 256)):
        start, nbytes = end + rng.randrange(20) * unit, min(rng.randrange(1, 30) * unit, left)
        extents.append((start, nbytes))
        end, left = start + nbytes, left - nbytes
    return extents


def random_payload(rng: random.Random, nbytes: int) -> bytes:
    payload = bytearray(rng.randbytes(nbytes))
    for start in range(0, nbytes, PIECE):
        kind = rng.randrange(4)
        length = min(PIECE, nbytes - start)
        if kind == 0:
            payload[start : start + length] = bytes(length)
        elif kind == 1:  # it begins as zeros do
            payload[start : start + length - 1] = bytes(length - 1)
            payload[start + length - 1] = 1
    return bytes(payload)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_left_out_comes_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    extents = random_extents(rng)
    payload = random_payload(rng, sum(nbytes for _, nbytes in extents))
    body = zeropieces.find(memoryview(payload), extents)
    assert body == slow_find(payload, extents), f"seed {seed}"
    assert len(body) <= zeropieces.MOST_NBYTES
    runs = zeropieces.present(body, extents) if body else [(0, len(payload))]
    sent = b"".join(payload[start:stop] for start, stop in runs)
    coming, buf = zeropieces.Coming(), _core.BlockBuffer("own")
    buf.data[:] = b"\xa5" * (1 << 20)
    if body:
        coming.take(body, 0)
    f = lab.input_file(tmp_path, sent + b"next")
    checked: list[bytes] = []
    left_out = coming.get(f, buf, extents, len(payload), lambda f, came, seed, start: checked.append(bytes(came)))
    assert bytes(buf.data[: len(payload)]) == payload, f"seed {seed}"
    assert left_out == len(payload) - len(sent)
    assert checked == [sent]
    assert f.get_buffer(4) == b"next"
    coming.check_none(0)


def test_a_payload_of_nothing_but_zeros(tmp_path: Path) -> None:
    coming, buf = zeropieces.Coming(), _core.BlockBuffer("own")
    buf.data[:] = b"\xa5" * (1 << 20)
    coming.take(zeropieces.find(memoryview(bytes(1 << 20)), [(0, 1 << 20)]), 0)
    assert coming.get(lab.input_file(tmp_path, b""), buf, [(0, 1 << 20)], 1 << 20, None) == 1 << 20
    assert not any(buf.data)


@pytest.mark.parametrize("body", [b"", b"\0", bytes(32), b"\xff" * 97])
def test_what_is_no_such_record(body: bytes) -> None:
    with pytest.raises(errors.StreamError, match="or is none"):
        zeropieces.Coming().take(body, 0)


@pytest.mark.parametrize(
    ("body", "nbytes"), [(b"\x80", 9 * PIECE), (b"\x80\0", 8 * PIECE), (b"\x40", 512), (b"\x81", 7 * PIECE + 0)]
)
def test_one_of_another_payload(body: bytes, nbytes: int) -> None:
    coming = zeropieces.Coming()
    coming.take(body, 0)
    with pytest.raises(errors.StreamError, match="of another payload"):
        coming.runs([(0, nbytes)], 0)


def test_two_in_a_row_and_one_before_something_else() -> None:
    coming = zeropieces.Coming()
    coming.take(b"\x80", 0)
    with pytest.raises(errors.StreamError, match="not followed by a pack"):
        coming.take(b"\x80", 0)
    with pytest.raises(errors.StreamError, match="a pack that is compressed"):
        coming.check_none(0)
    coming.forget()
    coming.check_none(0)
