# SPDX-License-Identifier: GPL-2.0-or-later
"""Several extents of a file in one call, against slices of its bytes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from blkmig import _core

MIB = _core.BLOCK_SIZE
SIZE = 3 * MIB + 700


def some_extents(rng: random.Random, *, stop: int) -> list[tuple[int, int]]:
    """Return up to 256 extents below `stop`, in any order, 1 MiB together."""
    found: list[tuple[int, int]] = []
    for _ in range(rng.choice((1, 2, 17, 256))):
        nbytes = rng.randrange(rng.choice((5, 4096, 4097, MIB // 256 + 1)))
        found.append((rng.randrange(stop - nbytes + 1), nbytes))
    return found


@pytest.mark.parametrize("seed", range(30))
def test_reading_against_slices(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    contents = rng.randbytes(SIZE)
    (tmp_path / "f").write_bytes(contents)
    blk = _core.BlockBuffer(rng.choice(("own", "mapped", "lent", "given")))
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    mapping = _core.Mapping(fd, SIZE)
    blk.fill_mapped(mapping, fd, 0, MIB)  # then the payload is the mapping, and must not stay that
    extents = some_extents(rng, stop=SIZE + 10_000)
    blk.fill_extents(fd, extents)
    wanted = b"".join(contents[offset : offset + nbytes].ljust(nbytes, b"\0") for offset, nbytes in extents)
    assert blk.payload[: len(wanted)] == wanted
    assert not blk.is_zero
    os.close(fd)


@pytest.mark.parametrize("seed", range(30))
def test_writing_against_slices(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    model = bytearray(rng.randbytes(SIZE))
    (tmp_path / "f").write_bytes(model)
    blk = _core.BlockBuffer(rng.choice(("own", "moved", "piped")))
    extents = some_extents(rng, stop=SIZE)
    blk.data[:] = payload = rng.randbytes(MIB)
    blk.filled(MIB)
    fd = os.open(tmp_path / "f", os.O_RDWR)
    blk.store_extents(fd, extents)
    os.close(fd)
    done = 0
    for offset, nbytes in extents:
        model[offset : offset + nbytes] = payload[done : done + nbytes]
        done += nbytes
    assert (tmp_path / "f").read_bytes() == model
    assert blk.payload == payload, "it is the caller's still"


@pytest.mark.parametrize(
    "extents",
    [
        [],
        [(0, 512)] * 257,
        [(0, MIB), (MIB, 1)],
        [(0, MIB + 1)],
        [(0, 1 << 63)],
        [((1 << 63) - 511, 512)],
        [((1 << 64) - 1, 1)],
    ],
)
def test_what_is_no_list(extents: list[tuple[int, int]]) -> None:
    blk = _core.BlockBuffer()
    for call in (blk.fill_extents, blk.store_extents):
        with pytest.raises(ValueError, match="extents"):
            call(-1, extents)


@pytest.mark.parametrize("extents", [[(-1, 512)], [(0, -512)], [(1 << 64, 1)], [(0.5, 1)], [(0,)], [7]])
def test_what_is_no_extent(extents: object) -> None:
    blk = _core.BlockBuffer()
    for call in (blk.fill_extents, blk.store_extents):
        with pytest.raises((OverflowError, TypeError, ValueError)):
            call(-1, extents)  # type: ignore[arg-type]


def test_an_error_says_which_extent(tmp_path: Path) -> None:
    """Of none that were read or written before."""
    (tmp_path / "f").write_bytes(bytes(SIZE))
    blk = _core.BlockBuffer()
    extents = [(4096, 512), (MIB, 4096)]
    with pytest.raises(_core.ExtentError) as caught:
        blk.fill_extents(-1, extents)
    assert (caught.value.errno, caught.value.offset, caught.value.nbytes) == (9, 4096, 512)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    with pytest.raises(_core.ExtentError) as caught:
        blk.store_extents(fd, extents)
    assert (caught.value.errno, caught.value.offset, caught.value.nbytes) == (9, 4096, 512)
    os.close(fd)
    reader, writer = os.pipe()  # cannot be read at an offset
    with pytest.raises(_core.ExtentError) as caught:
        blk.fill_extents(reader, [(0, 0), *extents])
    assert (caught.value.errno, caught.value.offset) == (29, 4096), "nothing was read of the first, of no bytes"
    os.close(reader)
    os.close(writer)


def test_gathered_bytes_are_the_payload(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"m" * SIZE)
    blk = _core.BlockBuffer("mapped")
    with (tmp_path / "f").open("rb") as file:
        blk.fill_mapped(_core.Mapping(file.fileno(), SIZE), file.fileno(), 0, MIB)
    blk.data[:3] = b"own"
    blk.gathered()
    assert blk.payload[:3] == b"own"
    assert not blk.is_zero
