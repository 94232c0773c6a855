# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of callers at the verbs of disks, and flags and names (A3)."""

from __future__ import annotations

import decimal
import fractions
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from number_disks import SIZE, MiB
from number_disks import backend as backend

from blkmig import _core, disk, errors, files, params, units
from blkmig.disk import dirty
from blkmig.files import dirtymap

NO_NUMBERS = [1.0, 0.0, 1.9, np.float64(1), np.float32(0), decimal.Decimal(1), fractions.Fraction(1), 1j, np.bool_(1)]
NO_NUMBERS += ["1", b"1", None, [1], np.array([1, 2]), np.array(1.0)]
INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


def enter(context: Any) -> None:
    with context:
        pass


#: Each takes a disk and two numbers.
RANGES: dict[str, Callable[[Any, Any, Any], object]] = {
    "pread": lambda d, offset, n: d.pread(offset, n),
    "pwrite_zeroes": lambda d, offset, n: d.pwrite_zeroes(offset, n),
    "write_zeroes": lambda d, offset, n: d.write_zeroes(offset, n),
    "mark_dirty": lambda d, offset, n: d.mark_dirty(offset, n),
    "writing": lambda d, offset, n: enter(d.writing(offset, n)),
    "read_block": lambda d, offset, n: d.read_block(_core.BlockBuffer(), offset, n),
    "write_block": lambda d, offset, n: d.write_block(_core.BlockBuffer(), offset, n),
    "read_extents": lambda d, offset, n: d.read_extents(_core.BlockBuffer("own"), [(offset, n)]),
    "write_extents": lambda d, offset, n: d.write_extents(_core.BlockBuffer("own"), [(offset, n)]),
    "next_allocated": lambda d, offset, n: d.next_allocated(offset, n),
    "mark": lambda d, offset, n: d.bitmap.mark(offset, n),
    "take_blocks": lambda d, offset, n: d.bitmap.take_blocks(offset, n),
}
#: Each takes a disk and one number.
PLACES: dict[str, Callable[[Any, Any], object]] = {
    "pwrite": lambda d, offset: d.pwrite(b"x", offset),
    "next_data": lambda d, offset: d.next_data(offset),
    "zeroes_end": lambda d, offset: d.zeroes_end(offset) if isinstance(d, files.FileBackend) else d.pread(offset, 1),
    "create_dirty_bitmap": lambda d, granularity: d.create_dirty_bitmap(granularity),
    "mark_block": lambda d, block: d.bitmap.mark_block(block),
    "take_block": lambda d, block: d.bitmap.take_block(block),
    "is_dirty": lambda d, block: d.bitmap.is_dirty(block),
    "next_dirty": lambda d, block: d.bitmap.next_dirty(block),
    "block_range": lambda d, block: d.bitmap.block_range(block),
    "take_areas": lambda d, count: d.bitmap.take_areas(count),
    "take_block_if": lambda d, block: d.bitmap.take_block_if(block, 1),
    "take_extents": lambda d, block: d.bitmap.take_extents(block),
}
VERBS = {**RANGES, **PLACES}


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_refuses_what_is_no_whole_number(backend, verb):
    """A3: ``pwrite(b"a", 1.5)`` was a TypeError after the write."""
    backend.bitmap = backend.create_dirty_bitmap(65536)
    before = backend.pread(0, SIZE)
    bools = [True, False] if verb not in ("read_block", "read_extents") else []  # the compiled part takes them
    for value in [*NO_NUMBERS, *bools]:
        for args in [(value, 1), (0, value)] if verb in RANGES else [(value,)]:
            with pytest.raises(TypeError):
                VERBS[verb](backend, *args)
    assert backend.pread(0, SIZE) == before
    assert backend.bitmap.count_blocks() == 0


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: kind.__name__)
def test_a_disk_takes_numbers_of_numpy(backend, kind):
    """Each end of what the type holds: sums that overflow it must not."""
    bitmap = backend.create_dirty_bitmap(65536)
    limit = int(np.iinfo(kind).max)
    for offset in {0, 1, limit, limit - 4} & set(range(SIZE - 8)):
        backend.pwrite(b"Z" * 8, kind(offset))
        assert backend.pread(kind(offset), kind(8)) == b"Z" * 8
        assert bitmap.take_block(kind(offset // MiB)), offset
        backend.pwrite_zeroes(kind(offset), kind(8))
        assert bitmap.take_block(offset // MiB), offset
        assert backend.pread(offset, 8) == bytes(8)
        backend.mark_dirty(kind(offset), kind(8))
        assert bitmap.take_areas(kind(100))
        with backend.writing(kind(offset), kind(8)):
            pass
        assert bitmap.count_blocks()
        bitmap.take_areas()
    blk = _core.BlockBuffer()
    backend.write_block(blk, kind(0), kind(100))
    assert backend.read_block(blk, kind(0), kind(100))
    extents = [(kind(limit & 8191), kind(100)), (kind(0), kind(1))]  # the end of the first overflows
    blk = _core.BlockBuffer("own")
    blk.data[:101] = b"E" * 101
    blk.gathered()
    backend.write_extents(blk, extents)
    assert backend.pread(limit & 8191, 100) == b"E" * 100
    backend.read_extents(blk, extents)
    assert blk.data[:101] == b"E" * 101


def test_writes_behind_the_end_are_refused_whatever_their_type(backend):
    """A3: the file grew to 2 GiB."""
    for offset in (np.int32(2**31 - 4), np.int64(2**63 - 4), np.uint32(2**32 - 4), np.uint64(2**64 - 4), 1 << 80):
        for write in (
            lambda at: backend.pwrite(b"Z" * 8, at),
            lambda at: backend.pwrite_zeroes(at, np.int32(8)),
            lambda at: backend.write_block(_core.BlockBuffer(), at, np.int32(8)),
            lambda at: backend.writing(at, np.int16(8)),
            lambda at: backend.mark_dirty(at, np.int8(8)),
        ):
            with pytest.raises(errors.DeviceError, match="outside the disk"):
                write(offset)
    if isinstance(backend, files.FileBackend):
        assert pathlib.Path(backend.files[0].path).stat().st_size == SIZE


def test_a_write_at_a_small_number_is_marked(backend):
    """A3: ``pwrite(bytes(8192), numpy.int16(0x7000))`` was written and never marked."""
    bitmap = backend.create_dirty_bitmap(65536)
    backend.pwrite(b"x" * 8192, np.int16(0x7000))
    assert bitmap.take_areas() == [(0, 65536)]


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("owner", [disk.DirtyBitmap, disk.BlockGeometry], ids=lambda owner: owner.__name__)
def test_no_number_of_a_bitmap_overflows(owner, kind):
    """A3: `take_extents` and `take_block_if` of ``numpy.int16(300)`` cleared another block, whose marks were lost."""

    def called(verb, number):
        bitmap = disk.DirtyBitmap(1 << 30, 4096)
        for block in range(bitmap.nblocks):
            bitmap.mark_areas([(block * MiB + block % 256 * 4096, 8192)])
        answer = getattr(bitmap if owner is disk.DirtyBitmap else bitmap.geometry, verb)(*number)
        return answer, bitmap.take_areas(5000)

    numbers = [min(int(np.iinfo(kind).max), 1000), 3]
    for verb, function in vars(owner).items():
        annotations = getattr(function, "__annotations__", {})
        wanted = [annotations[name] for name in annotations if name != "return"]
        if verb.startswith("_") or set(wanted) != {"int"}:
            continue
        arguments = numbers[: len(wanted)]
        assert called(verb, [kind(number) for number in arguments]) == called(verb, arguments), verb


def test_sizes_of_numpy(tmp_path):
    for kind in INTEGERS:
        with files.FileBackend.create(tmp_path / kind.__name__, kind(100)) as new:
            assert new.size == 100
            new.resize(kind(90))
            assert type(new.size) is int
        assert (tmp_path / kind.__name__).stat().st_size == 90
        assert dirty.DirtyBitmap(kind(100), np.int64(65536)).nblocks == 1
        assert disk.BlockGeometry(kind(100)).block_of(kind(0)) == 0
        dirtymap.create_map(tmp_path / "map", kind(100), granularity=np.int32(4096))
        assert units.parse_size(kind(100)) == 100


def test_a_file_of_no_whole_size_is_not_made(tmp_path):
    for value in [*NO_NUMBERS, True]:
        if value is not None:
            with pytest.raises(TypeError):
                files.FileBackend(tmp_path / "new", create_size=value)
        if not isinstance(value, str):
            with pytest.raises(errors.ParameterError):
                dirtymap.create_map(tmp_path / "new", value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [*NO_NUMBERS, True])
def test_a_size_is_a_whole_number_or_a_text(value):
    if isinstance(value, str):
        return
    with pytest.raises(errors.ParameterError):
        units.parse_size(value)
    with pytest.raises(errors.ParameterError):
        params.IncomingParameters(sizes={"vda": value})
    for name in ("max_bandwidth", "granularity", "max_parallel_reads", "max_buffers"):
        with pytest.raises(errors.ParameterError):
            params.MigrationParameters(**{name: value})


def test_a_size_of_too_many_digits():
    with pytest.raises(errors.ParameterError, match="5000 digits"):
        units.parse_size("1" * 5000)
