# SPDX-License-Identifier: GPL-2.0-or-later
"""EXTRAs cut everywhere and with each bit flipped: what is taken is a body that came, or it is an error."""

from __future__ import annotations

import random
from pathlib import Path

import lab
import model
import pytest
import savevm_streams as streams

from blkmig import errors
from blkmig.block import BlockLoadHandlers, TableDisk, extra, table

KINDS = (1, 2, 8)
MUTATIONS = 1000


def section() -> bytes:
    """Return the payload of a section: a table, and some EXTRAs."""
    rng = random.Random(21)
    bodies = [rng.randbytes(nbytes) for nbytes in (0, 1, 30, 300)]
    found = [table.encode([TableDisk(b"d", 4000, 4096)])]
    return b"".join(found + [extra(rng.choice(KINDS), body) for body in bodies]) + streams.EOS


def load(folder: Path, data: bytes) -> tuple[list[tuple[int, bytes]], errors.StreamError | None]:
    """Return what was taken, and the error that ended it."""
    taken: list[tuple[int, bytes]] = []
    handlers = BlockLoadHandlers(lambda name, position: pytest.fail("no block comes"))
    handlers.on_extra = {kind: lambda body, position, kind=kind: taken.append((kind, body)) for kind in KINDS}  # type: ignore[misc]
    handlers.load_start("blkmig", 0)
    with lab.input_file(folder, data) as f:
        try:
            handlers.load_state(f, 1)
        except errors.StreamError as error:
            return taken, error
    return taken, None


def said(data: bytes) -> list[tuple[int, bytes]]:
    """Return the EXTRAs of `data` as far as the plain reader can read them."""
    reader, stream = model.Reader(data), model.Stream()
    try:
        model.read_table(reader, stream)
        model.read_blocks(reader, "START", stream)
    except (model.CutShort, AssertionError, UnicodeDecodeError):
        pass
    return stream.extras


def test_every_cut(tmp_path: Path) -> None:
    data = section()
    assert load(tmp_path, data) == (said(data), None)
    for cut in range(len(data)):
        taken, error = load(tmp_path, data[:cut])
        assert isinstance(error, errors.StreamError), f"cut at {cut}"
        assert taken == said(data[:cut]), f"cut at {cut}"


def check(folder: Path, data: bytes, note: str) -> None:
    taken, _ = load(folder, data)
    known = [each for each in said(data) if each[0] in KINDS]
    assert taken == known[: len(taken)], note


def test_every_bit(tmp_path: Path) -> None:
    data = section()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            check(tmp_path, bytes(damaged), f"bit {bit} of byte {position}")


def test_mutations(tmp_path: Path, is_long: bool) -> None:
    seed = random.randrange(1 << 32) if is_long else 21
    rng, data = random.Random(seed), section()
    for number in range(MUTATIONS * (20 if is_long else 1)):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            at, length = rng.randrange(len(damaged)), rng.randint(0, 9)
            damaged[at : at + length] = rng.randbytes(rng.randint(0, 9))
        check(tmp_path, bytes(damaged), f"seed {seed}, number {number}")
