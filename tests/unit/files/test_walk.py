# SPDX-License-Identifier: GPL-2.0-or-later
"""Random walks over every kind of disk beside a bytearray: what is read, what is marked, what may hold data."""

import random

import disks
import pytest

from blkmig import _core, disk

MiB = 1 << 20
CASES = [(kind, size) for kind in disks.KINDS for size in disks.SIZES if kind != "device" or size % 512 == 0]


class Walk:
    """A disk, the bytes that it must show, and the blocks that must be marked."""

    def __init__(self, backend: disk.LocalBackend, contents: bytes, rng: random.Random) -> None:
        self.disk, self.model, self.rng = backend, bytearray(contents), rng
        self.bitmap = backend.create_dirty_bitmap(rng.choice((1 << 16, 1 << 20)))
        self.dirty: set[int] = set()
        self.blk, self.movable = _core.BlockBuffer(), _core.BlockBuffer("moved")

    def some_range(self, longest: int) -> tuple[int, int]:
        size = len(self.model)
        offset = self.rng.choice((0, self.rng.randrange(size), self.bitmap.geometry.last_offset, size - 1))
        nbytes = min(size - offset, self.rng.choice((1, 512, 4096, 65536, self.rng.randrange(longest) + 1)))
        return offset, nbytes

    def data(self, nbytes: int) -> bytes:
        return self.rng.choice((self.rng.randbytes, lambda n: disks.patchy(self.rng, n)))(nbytes)

    def pwrite(self) -> None:
        offset, nbytes = self.some_range(300_000)
        data = self.data(nbytes)
        self.disk.pwrite(data, offset)
        self.model[offset : offset + nbytes] = data
        self.dirty |= set(self.bitmap.geometry.blocks_covering(offset, nbytes))

    def pwrite_zeroes(self) -> None:
        offset, nbytes = self.some_range(2 * MiB)
        self.disk.pwrite_zeroes(offset, nbytes)
        self.model[offset : offset + nbytes] = bytes(nbytes)
        self.dirty |= set(self.bitmap.geometry.blocks_covering(offset, nbytes))

    def write_block(self) -> None:
        offset, nbytes = self.bitmap.block_range(self.rng.randrange(self.bitmap.nblocks))
        nbytes = self.bitmap.geometry.clip(offset, nbytes)
        data = self.data(nbytes)
        blk = self.movable if self.rng.random() < 0.7 else self.blk
        blk.data[:nbytes] = data
        blk.filled(nbytes)
        self.disk.write_block(blk, offset, nbytes)
        self.model[offset : offset + nbytes] = data

    def some_extents(self) -> list[tuple[int, int]]:
        return [self.some_range(3000) for _ in range(self.rng.choice((1, 2, 12)))]

    def write_extents(self) -> None:
        """Behind a block that may still wait to be stored, as often as not."""
        extents = [(offset, min(nbytes, 65536)) for offset, nbytes in self.some_extents()]
        blk = self.rng.choice((self.movable, self.blk))
        blk.data[:] = data = self.data(MiB)
        blk.filled(MiB)
        self.disk.write_extents(blk, extents)
        done = 0
        for offset, nbytes in extents:
            self.model[offset : offset + nbytes] = data[done : done + nbytes]
            done += nbytes

    def read_extents(self) -> None:
        extents = [(offset, min(nbytes, 65536)) for offset, nbytes in self.some_extents()]
        extents.append((len(self.model) - 1, 700))  # past the end are zeros
        self.disk.read_extents(self.blk, extents)
        want = b"".join(self.model[offset : offset + nbytes].ljust(nbytes, b"\0") for offset, nbytes in extents)
        assert self.blk.payload[: len(want)] == want

    def write_zeroes(self) -> None:
        offset, nbytes = self.some_range(len(self.model))
        self.disk.write_zeroes(offset, nbytes)
        self.model[offset : offset + nbytes] = bytes(nbytes)

    def pread(self) -> None:
        offset, nbytes = self.some_range(2 * MiB)
        assert self.disk.pread(offset, nbytes) == self.model[offset : offset + nbytes]

    def read_block(self) -> None:
        offset, nbytes = self.bitmap.block_range(self.rng.randrange(self.bitmap.nblocks))
        want = bytes(self.model[offset : offset + nbytes]).ljust(MiB, b"\0")
        assert self.disk.read_block(self.blk, offset, nbytes) == (not any(want))
        assert self.blk.payload == want

    def flush(self) -> None:
        self.disk.flush()

    def take(self) -> None:
        block = self.rng.randrange(self.bitmap.nblocks)
        assert self.bitmap.take_block(block) == (block in self.dirty)
        self.dirty.discard(block)

    def next_data(self) -> None:
        """Walk over the extents: what lies between them is zeros."""
        offset = 0
        while (extent := self.disk.next_data(offset)) is not None:
            assert offset <= extent[0] < extent[1] <= len(self.model)
            assert not any(self.model[offset : extent[0]])
            offset = extent[1]
        assert not any(self.model[offset:])

    def zeroes_end(self) -> None:
        offset = self.rng.randrange(len(self.model))
        end = self.disk.zeroes_end(offset)
        assert offset <= end <= len(self.model)
        assert not any(self.model[offset:end])

    def check(self) -> None:
        assert self.disk.pread(0, len(self.model)) == self.model
        assert self.bitmap.count_blocks() == len(self.dirty)
        self.next_data()


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_random_walk(kind, size, tmp_path):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    contents, below, shown = starting_point(rng, kind, size)
    with disks.open_disk(kind, tmp_path, contents, below=below) as backend:
        walk = Walk(backend, shown, rng)
        steps = [walk.pwrite, walk.pwrite_zeroes, walk.write_block, walk.write_zeroes, walk.pread, walk.read_block]
        steps += [walk.pwrite, walk.pread, walk.read_block, walk.take, walk.next_data, walk.flush]
        steps += [walk.zeroes_end, walk.write_extents, walk.write_extents, walk.read_extents]
        history: list[str] = []
        try:
            walk.check()
            for _ in range(40):
                step = rng.choice(steps)
                history.append(step.__name__)
                step()
            walk.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, after {history}") from error
        backend.flush()
    if kind in ("file", "direct", "device"):
        assert (tmp_path / f"{kind}.raw").read_bytes() == walk.model, f"seed {seed}"
    if kind.startswith("overlay"):
        assert (tmp_path / "base.raw").read_bytes() == below, f"seed {seed}"


def starting_point(rng: random.Random, kind: str, size: int) -> tuple[bytes, bytes, bytes]:
    """Return the contents, those of the base, and what both together show."""
    contents = disks.patchy(rng, size)
    if not kind.startswith("overlay"):
        return contents, b"", contents
    below = disks.patchy(rng, rng.randrange(1, size) if "short" in kind else size + rng.randrange(MiB))
    under = below[:size].ljust(size, b"\0")
    pages = [slice(start, start + 4096) for start in range(0, size, 4096)]
    return contents, below, b"".join(contents[page] if any(contents[page]) else under[page] for page in pages)
