# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of a file's blocks in one call: the same bytes as block by block, the bits cleared, and where a run ends."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lab
import pytest

import blkmig
from blkmig import _core, _output, channel, errors
from blkmig.channel import buffers

MIB = _core.BLOCK_SIZE
NBLOCKS = 12
HOUR = 3600.0


class Disk:
    """A file with its mapping; blocks whose number is in `zero_heads` begin with 4 KiB of zeros."""

    def __init__(self, path: Path, zero_heads: set[int]) -> None:
        rng = random.Random(f"{sorted(zero_heads)}")
        self.blocks = [
            (bytes(4096) if block in zero_heads else b"") + rng.randbytes(MIB - 4096 * (block in zero_heads))
            for block in range(NBLOCKS)
        ]
        path.write_bytes(b"".join(self.blocks))
        self.file = path.open("r+b")
        self.mapping = _core.Mapping(self.file.fileno(), NBLOCKS * MIB)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "disk"


def put(
    disk: Disk,
    stream: Path,
    block: int,
    count: int,
    *,
    bits_per_block: int = 1,
    seconds: float = HOUR,
    kind: Literal["own", "mapped", "lent", "given"] = "mapped",
) -> tuple[int, bytes, _core.Bitmap]:
    """Return what put_file_blocks returned, what it wrote, and the bitmap, which was full."""
    dirty, blk = _core.Bitmap(NBLOCKS * bits_per_block), _core.BlockBuffer(kind)
    dirty.set_range(0, len(dirty))
    with stream.open("wb") as file:
        out = _output.OutputBuffer(file.fileno())
        done = out.put_file_blocks(disk.mapping, block, count, b"vda", blk, dirty, bits_per_block, seconds)
        out.flush()
        assert out.position == out.flushed
    return done, stream.read_bytes(), dirty


def expected(disk: Disk, blocks: range) -> bytes:
    head = bytearray(64)
    pieces = []
    for block in blocks:
        pieces.append(bytes(head[: _core.put_block_header(head, 0, block * 2048, 1, b"vda")]))
        pieces.append(disk.blocks[block])
    return b"".join(pieces)


@pytest.mark.parametrize("kind", ["own", "mapped", "lent", "given"])
@pytest.mark.parametrize("bits_per_block", [1, 16, 256])
@pytest.mark.parametrize("zero_heads", [set(), {0}, {5}, {11}, {3, 4, 9}])
def test_a_run(path: Path, tmp_path: Path, zero_heads: set[int], bits_per_block: int, kind: Any) -> None:
    """A block whose head is zero is read as a whole, and is data like any other if the rest is not zero."""
    disk = Disk(path, zero_heads)
    for first in (0, 1, 4, 11):
        for count in (0, 1, 5, NBLOCKS - first):
            if first + count > NBLOCKS:
                continue
            done, written, dirty = put(
                disk, tmp_path / "s", first, count, bits_per_block=bits_per_block, kind=kind
            )
            assert done == count
            assert written == expected(disk, range(first, first + done))
            cleared = range(first * bits_per_block, (first + done) * bits_per_block)
            assert all(dirty.test(bit) == (bit not in cleared) for bit in range(len(dirty)))


@pytest.mark.parametrize("zero", [0, 3, 11])
def test_a_run_ends_at_a_zero_block(path: Path, tmp_path: Path, zero: int) -> None:
    disk = Disk(path, set())
    disk.file.seek(zero * MIB)
    disk.file.write(bytes(MIB))
    disk.file.flush()
    done, written, dirty = put(disk, tmp_path / "s", 0, NBLOCKS)
    assert done == zero
    assert written == expected(disk, range(zero))
    assert dirty.count() == NBLOCKS - zero - 1  # that block's bit is cleared, too: it was looked at
    assert not dirty.test(zero)


def test_a_run_takes_at_least_one_block(path: Path, tmp_path: Path) -> None:
    disk = Disk(path, set())
    assert put(disk, tmp_path / "s", 2, 9, seconds=0.0)[0] == 1


@pytest.mark.parametrize(("block", "count"), [(0, NBLOCKS + 1), (NBLOCKS, 1), (1 << 62, 1), (1, (1 << 64) - 1)])
def test_outside_of_the_file(path: Path, tmp_path: Path, block: int, count: int) -> None:
    disk = Disk(path, set())
    with pytest.raises(IndexError, match="not inside a mapping"):
        put(disk, tmp_path / "s", block, count)


def test_bits_that_are_not_there(path: Path) -> None:
    disk = Disk(path, set())
    with (path.parent / "s").open("wb") as file, pytest.raises(IndexError, match="not inside a bitmap"):
        _output.OutputBuffer(file.fileno()).put_file_blocks(
            disk.mapping, 0, NBLOCKS, b"vda", _core.BlockBuffer(), _core.Bitmap(NBLOCKS - 1), 1, HOUR
        )


def test_a_name_that_does_not_fit(path: Path) -> None:
    disk = Disk(path, set())
    with (path.parent / "s").open("wb") as file, pytest.raises(OverflowError, match="256 bytes"):
        _output.OutputBuffer(file.fileno()).put_file_blocks(
            disk.mapping, 0, 1, b"n" * 256, _core.BlockBuffer(), _core.Bitmap(NBLOCKS), 1, HOUR
        )


def test_a_file_that_was_cut(path: Path, tmp_path: Path) -> None:
    """What is gone reads as zeros, so that the record keeps its length; the disk tells before the end of the round."""
    disk = Disk(path, set())
    disk.file.truncate(2 * MIB + 5000)
    done, written, _ = put(disk, tmp_path / "s", 0, NBLOCKS)
    assert done == 3
    assert written[-MIB:] == disk.blocks[2][:5000].ljust(MIB, b"\0")


def test_a_limited_rate_goes_block_by_block(path: Path, tmp_path: Path) -> None:
    disk = Disk(path, set())
    with channel.Connector(f"file:{tmp_path}/s").connect(timeout=10) as f:
        f.set_rate_limit(1 << 40)
        arguments = (disk.mapping, 0, 3, b"vda", _core.BlockBuffer(), _core.Bitmap(NBLOCKS), 1, HOUR)
        assert f.put_file_blocks(*arguments) == 0
        f.set_rate_limit(0)
        assert f.put_file_blocks(*arguments) == 3


def test_a_read_error_in_a_run_is_the_disks(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the disk and the offset, and is not taken for the channel's."""
    Disk(path, set())

    class Unreadable:
        def __init__(self, real: _output.OutputBuffer) -> None:
            self._real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

        def put_file_blocks(self, *_: object) -> int:
            error = _output.PayloadError(errno.EIO, "Input/output error")
            error.offset = 3 * MIB
            raise error

    open_output = buffers.open_output
    monkeypatch.setattr(buffers, "open_output", lambda fd, **options: Unreadable(open_output(fd, **options)))
    with blkmig.FileBackend(path, name="vda", writable=False) as disk:
        migration = blkmig.outgoing([disk], f"file:{tmp_path}/s")
        with pytest.raises(errors.DeviceError) as caught, migration:
            migration.iterate()
    assert (caught.value.device, caught.value.offset) == ("vda", 3 * MIB)
    assert "Input/output error" in str(caught.value)
    assert migration.status == "failed"


def test_a_whole_migration_of_runs(tmp_path: Path) -> None:
    """Data, zeros, holes, and a last block that starts early: everything arrives."""
    rng = random.Random(11)
    content = bytearray(rng.randbytes(9 * MIB + 512 * 77))
    for block in (2, 3, 6):
        content[block * MIB : (block + 1) * MIB] = bytes(MIB)
    source = tmp_path / "s.raw"
    with source.open("wb") as file:
        for block in range(10):
            if block not in (3, 6):
                file.seek(block * MIB)
                file.write(content[block * MIB : (block + 1) * MIB])
    for writable in (False, True):
        receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / f"t{writable}.raw"})
        with blkmig.FileBackend(source, name="d", writable=writable) as disk:
            blkmig.send([disk], receiver.uri)
        receiver.result()
        assert (tmp_path / f"t{writable}.raw").read_bytes() == content
