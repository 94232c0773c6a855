# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and writing blocks of files: short files, holes, interruptions, and every way in which it fails."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pathlib
import random
import resource
import signal
from collections.abc import Callable, Iterator

import pytest
from block_files import MiB, content
from block_files import blk as blk
from block_files import make as make

from blkmig import _core

NOISE = random.Random(5).randbytes(MiB)


@contextlib.contextmanager
def no_room_beyond(nbytes: int) -> Iterator[None]:
    """Let no file grow beyond `nbytes`: EFBIG, and short writes up to there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("nbytes", [0, 1, 511, 4096, MiB])
def test_pread_full(make: Callable[[bytes], int], nbytes: int) -> None:
    fd = make(NOISE[:10000])
    for offset in (0, 1, 5000, 9999, 10000, 20000):
        buffer = bytearray(b"\xaa" * nbytes)
        expected = NOISE[:10000][offset : offset + nbytes]
        assert _core.pread_full(fd, buffer, offset) == len(expected)
        assert buffer == expected + b"\xaa" * (nbytes - len(expected))


def test_pwrite_full(make: Callable[[bytes], int]) -> None:
    fd = make(b"")
    _core.pwrite_full(fd, NOISE[:100], 50)
    _core.pwrite_full(fd, memoryview(bytearray(NOISE))[:10], 0)
    _core.pwrite_full(fd, b"", 999)
    assert content(fd) == NOISE[:10] + bytes(40) + NOISE[:100]


def test_short_write_then_error(make: Callable[[bytes], int]) -> None:
    """The kernel takes 100 of 1,000 bytes and then no more."""
    fd = make(b"")
    with no_room_beyond(100), pytest.raises(OSError, match="File too large") as caught:
        _core.pwrite_full(fd, NOISE[:1000], 0)
    assert caught.value.errno == errno.EFBIG
    assert content(fd) == NOISE[:100]


def test_errors_have_their_errno(make: Callable[[bytes], int], tmp_path: pathlib.Path) -> None:
    fd = make(NOISE[:100])
    directory = os.open(tmp_path, os.O_RDONLY)
    reader, writer = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        for bad, offset, expected in (
            (-1, 0, errno.EBADF),
            (directory, 0, errno.EISDIR),
            (reader, 0, errno.ESPIPE),
            (fd, -1, errno.EINVAL),
            (memory, 0, errno.EIO),
        ):
            for read in (
                lambda bad=bad, offset=offset: _core.pread_full(bad, bytearray(10), offset),
                lambda bad=bad, offset=offset: _core.BlockBuffer().fill(bad, offset, 10),
                lambda bad=bad, offset=offset: _core.BlockBuffer().fill_mapped(_core.Mapping(fd, 10), bad, offset, 10),
            ):
                with pytest.raises(OSError) as caught:  # noqa: PT011
                    read()
                assert caught.value.errno == expected, (bad, offset)
        for bad, offset, expected in (
            (-1, 0, errno.EBADF),
            (full, 0, errno.ENOSPC),
            (writer, 0, errno.ESPIPE),
            (fd, -1, errno.EINVAL),
            (memory, 0, errno.EBADF),
        ):
            for write in (
                lambda bad=bad, offset=offset: _core.pwrite_full(bad, b"x", offset),
                lambda bad=bad, offset=offset: _core.BlockBuffer().store(bad, offset, 1),
            ):
                with pytest.raises(OSError) as caught:  # noqa: PT011
                    write()
                assert caught.value.errno == expected, (bad, offset)
    finally:
        for each in (directory, reader, writer, full, memory):
            os.close(each)


def test_buffers_must_fit() -> None:
    with pytest.raises((BufferError, TypeError)):
        _core.pread_full(0, bytes(10), 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _core.pwrite_full(0, "text", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("size", [0, 1, 511, 4095, 4096, 4097, MiB - 1, MiB, MiB + 1, 3 * MiB])
def test_fill(make: Callable[[bytes], int], blk: _core.BlockBuffer, size: int, mapped: bool) -> None:
    data = (NOISE * 4)[:size]
    fd = make(data)
    mapping = _core.Mapping(fd, size)
    for offset in (0, 512, MiB - 512, MiB, 2 * MiB):
        for nbytes in (0, 1, 512, 4096, 5000, MiB - 1, MiB):
            expected = data[offset : offset + nbytes].ljust(MiB, b"\0")
            zero = (
                blk.fill_mapped(mapping, fd, offset, nbytes) if mapped else blk.fill(fd, offset, nbytes)
            )
            assert zero == blk.is_zero == (not any(expected))
            assert bytes(blk.payload) == expected, (offset, nbytes)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("place", [0, 4095, 4096, 8191, MiB // 2, MiB - 1])
def test_one_byte_decides(make: Callable[[bytes], int], blk: _core.BlockBuffer, place: int, mapped: bool) -> None:
    content = bytearray(MiB)
    fd = make(bytes(content))
    mapping = _core.Mapping(fd, MiB)

    def fill() -> bool:
        return blk.fill_mapped(mapping, fd, 0, MiB) if mapped else blk.fill(fd, 0, MiB)

    assert fill()
    assert not any(blk.payload)
    os.pwrite(fd, b"\1", place)
    assert not fill()
    assert blk.payload[place] == 1
    os.pwrite(fd, b"\0", place)
    assert fill()


def test_filled(blk: _core.BlockBuffer) -> None:
    for nbytes in (0, 1, 512, MiB - 1, MiB):
        blk.data[:] = b"\xee" * MiB
        blk.data[:nbytes] = bytes(nbytes)
        assert blk.filled(nbytes)
        assert not any(blk.payload)
        if nbytes:
            blk.data[nbytes - 1] = 7
            assert not blk.filled(nbytes)
            assert not blk.is_zero
    assert blk.payload.readonly
    assert not blk.data.readonly
    assert len(blk.payload) == len(blk.data) == memoryview(blk).nbytes == MiB


@pytest.mark.parametrize("nbytes", [-1, MiB + 1, 1 << 40])
def test_more_than_a_block(make: Callable[[bytes], int], blk: _core.BlockBuffer, nbytes: int) -> None:
    fd = make(b"")
    for call in (
        lambda: blk.fill(fd, 0, nbytes),
        lambda: blk.fill_mapped(_core.Mapping(fd, 0), fd, 0, nbytes),
        lambda: blk.filled(nbytes),
        lambda: blk.store(fd, 0, nbytes),
        lambda: blk.store_sparse(fd, 0, nbytes, 4096, False),
    ):
        with pytest.raises(ValueError, match="a block holds 0 to 1048576 bytes"):
            call()


def test_new_block_is_zero() -> None:
    blk = _core.BlockBuffer()
    assert blk.is_zero
    assert not any(blk.payload)


def test_mapped_payload_is_the_file(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    """No copy is made: a later write shows."""
    fd = make(NOISE + NOISE)
    mapping = _core.Mapping(fd, 2 * MiB)
    assert not blk.fill_mapped(mapping, fd, 512, MiB)
    os.pwrite(fd, b"changed", 512)
    assert bytes(blk.payload[:7]) == b"changed"
    assert not blk.fill(fd, 512, MiB)
    os.pwrite(fd, b"again!!", 512)
    assert bytes(blk.payload[:7]) == b"changed"


def test_pages_live_as_long_as_somebody_shows_them(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    fd = make(NOISE)
    mapping = _core.Mapping(fd, MiB)
    blk.fill_mapped(mapping, fd, 0, MiB)
    view = blk.payload
    mapping.close()
    mapping.close()
    del mapping
    gc.collect()
    assert bytes(blk.payload) == NOISE
    blk.fill(fd, 0, MiB)
    assert bytes(view) == NOISE


def test_closed_mapping_is_not_used(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    fd = make(NOISE)
    mapping = _core.Mapping(fd, MiB)
    mapping.close()
    assert not blk.fill_mapped(mapping, fd, 0, MiB)
    os.pwrite(fd, bytes(MiB), 0)
    assert bytes(blk.payload) == NOISE


def test_file_truncated_before_the_pages_are_there(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    """The mapping has nothing behind the new end: the block is read, and what is gone is zeros."""
    fd = make(NOISE + NOISE)
    mapping = _core.Mapping(fd, 2 * MiB)
    os.truncate(fd, MiB + 5000)
    assert not blk.fill_mapped(mapping, fd, MiB, MiB)
    assert bytes(blk.payload) == NOISE[:5000] + bytes(MiB - 5000)
    os.truncate(fd, MiB)
    assert blk.fill_mapped(mapping, fd, MiB, MiB)
    assert not any(blk.payload)


def test_file_truncated_before_it_is_stored(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    """Pages that have gone are never touched: store reads the file again."""
    fd, target = make(NOISE), make(b"")
    blk.fill_mapped(_core.Mapping(fd, MiB), fd, 0, MiB)
    os.truncate(fd, 3 * 4096)
    blk.store(target, 0, MiB)
    assert content(target) == NOISE[: 3 * 4096] + bytes(MiB - 3 * 4096)
    blk.fill_mapped(_core.Mapping(fd, 3 * 4096), fd, 0, MiB)
    os.truncate(target, 0)
    assert blk.store_sparse(target, 0, MiB, 4096, False) == 3 * 4096


def test_mapping_errors(make: Callable[[bytes], int]) -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        _core.Mapping(make(b""), -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.Mapping(-1, 10)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="No such device"):
        _core.Mapping(reader, 10)
    os.close(reader)
    os.close(writer)
    assert _core.Mapping(make(b""), 0).size == 0
    assert memoryview(_core.Mapping(make(b"abc"), 3)).tobytes() == b"abc"
    assert memoryview(_core.Mapping(make(b""), 0)).nbytes == 0
