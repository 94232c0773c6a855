# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocks of one disk on a target: it holds what a bytearray holds, and nobody asks twice for a hole."""

from __future__ import annotations

import random
from pathlib import Path

import lab
import pytest

from blkmig import disk, files, stats
from blkmig.block import BlkLoadDevice

MIB = lab.MIB
SECTORS = MIB // 512


class Target:
    """A target and the bytes that it must show; `wire` holds the payloads that come."""

    def __init__(self, backend: disk.BlockBackend, model: bytearray, tmp_path: Path, payloads: list[bytes]) -> None:
        self.device = BlkLoadDevice(backend, stats.DiskStatistics("d"), size=len(model))
        self.model, self.payloads = model, payloads
        self.stream = lab.input_file(tmp_path, b"".join(payloads))

    def load_block(self, block: int) -> None:
        payload = self.payloads.pop(0)
        self.device.load_block(self.stream, block * SECTORS, 0)
        self.model[block * MIB : (block + 1) * MIB] = payload

    def load_zero_run(self, block: int, count: int) -> None:
        self.device.load_zero_run(block * SECTORS, count, 0)
        self.model[block * MIB : (block + count) * MIB] = bytes(count * MIB)


def payload(rng: random.Random) -> bytes:
    return rng.choice((rng.randbytes(MIB), bytes(MIB // 2) + rng.randbytes(MIB // 2)))


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_blocks_in_any_order(tmp_path: Path, seed: int, is_new: bool) -> None:
    rng = random.Random(f"{seed} {is_new}")
    nblocks = 24
    model, path = bytearray(nblocks * MIB), tmp_path / "t.raw"
    if not is_new:
        with path.open("wb") as file:
            file.truncate(len(model))
            for block in rng.sample(range(nblocks), 5):
                model[block * MIB : block * MIB + 70_000] = b"o" * 70_000
                file.seek(block * MIB)
                file.write(b"o" * 70_000)
    with files.FileBackend.create(path) if is_new else files.FileBackend(path) as backend:
        target = Target(backend, model, tmp_path, [payload(rng) for _ in range(30)])
        while target.payloads:
            block = rng.randrange(nblocks)
            if rng.random() < 0.5:
                target.load_block(block)
            else:
                target.load_zero_run(block, rng.choice((1, rng.randint(1, nblocks - block))))
        target.device.settle(len(model), "option")
        backend.flush()
        target.stream.close()
    assert path.read_bytes() == model, f"seed {seed}"


def test_a_hole_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.raw"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(40 * MIB)
        file.write(b"old" * MIB)
    model, asked, written = bytearray(path.read_bytes()), [], []
    with files.FileBackend(path) as backend:
        zeroes_end, write_zeroes = backend.zeroes_end, backend.write_zeroes
        monkeypatch.setattr(backend, "zeroes_end", lambda offset: asked.append(offset // MIB) or zeroes_end(offset))
        monkeypatch.setattr(
            backend, "write_zeroes", lambda start, n: written.append((start // MIB, n // MIB)) or write_zeroes(start, n)
        )
        target = Target(backend, model, tmp_path, [random.Random(block).randbytes(MIB) for block in range(12)])
        for block in range(0, 36, 3):
            target.load_block(block)
            target.load_zero_run(block + 1, 2)
        assert (asked, written) == ([1], [])
        target.load_zero_run(36, 6)
        assert (asked, written) == ([1, 36], [(36, 6)])
        target.load_zero_run(0, 2)
        assert (asked, written) == ([1, 36, 0], [(36, 6), (0, 2)])
        target.stream.close()
    assert path.read_bytes() == model
