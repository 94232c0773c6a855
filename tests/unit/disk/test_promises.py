# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk of another package answers is looked at: what it forgot was sent as zeros, and both ends said done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pytest

import blkmig
from blkmig import _core, errors

MIB = lab.MIB
CONTENT = os.urandom(MIB) + bytes(MIB) + b"x" * 4096 + bytes(MIB - 4096) + os.urandom(777)


class Snapshot(blkmig.BlockBackend):
    """A disk that nobody writes, as the guide shows one."""

    is_written = False

    def __init__(self) -> None:
        self.name, self.size = "d", len(CONTENT)

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        data = CONTENT[offset : offset + max(0, min(nbytes, self.size - offset))]
        blk.data[: len(data)] = data
        return blk.filled(len(data))

    def create_dirty_bitmap(self, granularity: int) -> blkmig.DirtyBitmap:
        return blkmig.DirtyBitmap(self.size, granularity)

    def release_dirty_bitmap(self, bitmap: blkmig.DirtyBitmap) -> None:
        pass

    def hold_writers(self) -> None:
        pass

    def release_writers(self, *, refuse: bool = False) -> None:
        pass

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        raise OSError("a snapshot is not written")

    write_zeroes = flush = write_block  # type: ignore[assignment]

    def close(self) -> None:
        pass


def short(blk: _core.BlockBuffer, data: bytes) -> None:
    blk.data[: len(data) // 2] = data[: len(data) // 2]
    blk.filled(len(data) // 2)


def unsaid(blk: _core.BlockBuffer, data: bytes) -> None:
    blk.data[: len(data)] = data


def number(blk: _core.BlockBuffer, data: bytes) -> int:
    blk.data[: len(data)] = data
    blk.filled(len(data))
    return len(data)


def reading(how: Callable[[_core.BlockBuffer, bytes], Any], *, beside: bool) -> Snapshot:
    """Return a disk that reads so; its `read_block` may come from a class that is no disk."""

    def read_block(self: Snapshot, blk: _core.BlockBuffer, offset: int, nbytes: int) -> Any:
        return how(blk, CONTENT[offset : offset + max(0, min(nbytes, self.size - offset))])

    if beside:
        kind = type("Mixed", (type("Reads", (), {"read_block": read_block}), Snapshot), {})
    else:
        kind = type("Direct", (Snapshot,), {"read_block": read_block})
    return kind()


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("how", [short, unsaid])
def test_what_is_not_given_is_not_sent(tmp_path: Path, how: Any, *, parallel: bool, beside: bool) -> None:
    disk = reading(how, beside=beside)
    disk.reads_in_parallel = parallel
    with pytest.raises(errors.DeviceError, match=r"cannot read at offset \d+, 1048576 bytes: a read that is short"):
        blkmig.send([disk], f"file:{tmp_path}/stream", digests=True)


@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_the_block_says_whether_it_is_zero(tmp_path: Path, section: Any) -> None:
    """Not what `read_block` returns: a number of bytes counts as true."""
    blkmig.send([reading(number, beside=False)], f"file:{tmp_path}/stream", format=section, digests=True)
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "copy"}, verify=True)
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_extents_are_given_too() -> None:
    class Forgetful(Snapshot):
        def read_extents(self, blk: _core.BlockBuffer, extents: Any) -> None:
            blk.data[:512] = CONTENT[:512]

    with pytest.raises(errors.DeviceError, match=r"nobody said how many bytes there are: call blk.filled\(\)"):
        Forgetful().read_extents(_core.BlockBuffer("own"), [(0, 512)])


def test_what_lies_behind_the_end_is_not_missed() -> None:
    disk, blk = Snapshot(), _core.BlockBuffer("own")
    assert not disk.read_block(blk, len(CONTENT) - 100, MIB)
    assert disk.read_block(blk, len(CONTENT) + 100, MIB)


@pytest.mark.parametrize(
    "answer",
    [(0, 0), (0, 5), (-5, -1), (MIB, MIB), (2 * MIB, MIB), (float(MIB), 3.0 * MIB), (MIB,), MIB, False, "ab",
     (None, MIB)],
    ids=repr,
)
def test_what_is_no_extent_behind_the_place(answer: Any) -> None:
    """The search for data went round and round in it, and no cancel was heard."""

    class Lost(Snapshot):
        def next_data(self, offset: int) -> Any:
            return answer

        def next_allocated(self, offset: int, nbytes: int) -> Any:
            return answer

    for call in (lambda: Lost().next_data(MIB), lambda: Lost().next_allocated(MIB, 3 * MIB)):
        with pytest.raises(errors.DeviceError, match="cannot look for data at offset 1048576: its class answers"):
            call()


@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_the_extent_around_the_place_is_its_rest(tmp_path: Path, section: Any) -> None:
    """Many libraries answer so, and in numbers of their own or in a list."""

    class Around(Snapshot):
        def next_data(self, offset: int) -> Any:
            areas = [(np.int64(0), np.int64(MIB + 4096)), [2 * MIB, 2 * MIB + 4096], (3 * MIB, 9 * MIB)]
            return next((area for area in areas if area[1] > offset), None)

    assert Around().next_data(MIB) == (MIB, MIB + 4096)
    assert all(type(number) is int for number in Around().next_data(0))
    blkmig.send([Around()], f"file:{tmp_path}/stream", format=section, digests=True)
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "copy"}, verify=True)
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("section", ["block", "blkmig"])
@pytest.mark.parametrize("change", [MIB, -MIB, 1])
def test_a_disk_that_changes_its_size(tmp_path: Path, section: Any, change: int) -> None:
    """What was sent had zeros where it was cut, or lacked what it has grown by."""

    class Elastic(Snapshot):
        def hold_writers(self) -> None:
            self.size += change

    with pytest.raises(errors.DeviceError, match=f"changed its size: it has {len(CONTENT) + change} bytes now"):
        blkmig.send([Elastic()], f"file:{tmp_path}/stream", format=section)
    assert not list(tmp_path.iterdir())


class Thin(blkmig.MemoryBackend):
    """A disk whose system calls may come up short, and say so in what they return, as os.pwrite does."""

    short_by = 0

    def _pwrite(self, view: memoryview, offset: int) -> Any:
        super()._pwrite(view[: view.nbytes - self.short_by], offset)
        return view.nbytes - self.short_by

    def _pread_into(self, view: memoryview, offset: int) -> Any:
        super()._pread_into(view[: view.nbytes - self.short_by], offset)
        return view.nbytes - self.short_by

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> Any:
        return self._pwrite(blk.payload[:nbytes], offset)


def test_a_number_that_is_short_is_an_error(tmp_path: Path) -> None:
    """A full disk writes a part and says how much: the receiver called its target complete."""
    blkmig.send([Snapshot()], f"file:{tmp_path}/stream")
    target = Thin(bytearray(len(CONTENT)), name="d")
    blkmig.receive(f"file:{tmp_path}/stream", {"d": target})
    assert target.pread(0, target.size) == CONTENT
    target.short_by = 100
    with pytest.raises(errors.DeviceError, match=r"disk 'd': cannot write at offset .*: 1048476 of 1048576 bytes"):
        blkmig.receive(f"file:{tmp_path}/stream", {"d": target})
    for call in (lambda: target.pwrite(bytes(512), 0), lambda: target.pread(0, 512)):
        with pytest.raises(errors.DeviceError, match="412 of 512 bytes were"):
            call()
