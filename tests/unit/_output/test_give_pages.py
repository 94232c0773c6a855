# SPDX-License-Identifier: GPL-2.0-or-later
"""Payloads whose pages are given to a pipe: whatever becomes of the buffer, the pipe has what was put."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from blkmig import _core, _output, _storing

MIB = _core.BLOCK_SIZE


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a pipe that holds as much as anybody may have it hold."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, MIB)
    yield ends
    for fd in ends:
        os.close(fd)


def fill(blk: _core.BlockBuffer, way: str, contents: bytes, folder: Path) -> None:
    """Fill the block in one of the ways that there are."""
    path = folder / "contents"
    path.write_bytes(contents)
    with path.open("rb") as file:
        if way == "fill":
            blk.fill(file.fileno(), 0, MIB)
        elif way == "fill_mapped":
            blk.fill_mapped(_core.Mapping(file.fileno(), MIB), file.fileno(), 0, MIB)
        elif way == "fill_extents":
            blk.fill_extents(file.fileno(), [(0, MIB)])
        else:
            with blk.data as view:
                view[:] = contents
            blk.filled(MIB)


@pytest.mark.parametrize("way", ["fill", "fill_mapped", "fill_extents", "filled"])
def test_the_next_payload_is_elsewhere(pipe: tuple[int, int], tmp_path: Path, way: str) -> None:
    """Pieces of many payloads stand in the pipe while the buffer is filled again and again."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    out, blk, expected = _output.OutputBuffer(pipe[1]), _core.BlockBuffer("given"), []
    for _ in range(11):
        contents = rng.randbytes(MIB)
        fill(blk, way, contents, tmp_path)
        for _ in range(2):
            offset, nbytes = rng.randrange(MIB // 2), rng.randrange(1, MIB // 64)
            out.put_byte(7)
            out.put_payload(blk, offset, nbytes)
            expected += [b"\7", contents[offset : offset + nbytes]]
    out.flush()
    fill(blk, way, bytes(MIB), tmp_path)
    del blk
    assert os.read(pipe[0], MIB) == b"".join(expected), seed


def test_a_view_keeps_its_bytes(pipe: tuple[int, int], tmp_path: Path) -> None:
    """Whoever has a view may write through it: the pipe gets a copy then."""
    out, blk = _output.OutputBuffer(pipe[1]), _core.BlockBuffer("given")
    fill(blk, "fill", b"a" * MIB, tmp_path)
    with blk.data as view:
        out.put_payload(blk, 0, 4096)
        view[:] = b"b" * MIB
        out.put_payload(blk, 0, 4096)
    assert os.read(pipe[0], MIB) == b"a" * 4096 + b"b" * 4096


def test_a_view_afterwards_is_of_other_bytes(pipe: tuple[int, int], tmp_path: Path) -> None:
    out, blk = _output.OutputBuffer(pipe[1]), _core.BlockBuffer("given")
    for half in range(5):
        fill(blk, "fill", bytes([65 + half]) * MIB, tmp_path)
        out.put_payload(blk, 0, 4096)
        with blk.data as view:
            view[:] = bytes(MIB)
    assert os.read(pipe[0], MIB) == b"".join(bytes([65 + half]) * 4096 for half in range(5))


def test_what_is_no_pipe_gets_copies(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out, blk = _output.OutputBuffer(ours.fileno()), _core.BlockBuffer("given")
        assert not out.keeps_pages
        fill(blk, "fill", b"a" * MIB, tmp_path)
        out.put_payload(blk, 0, 4096)
        out.put_payload(blk, 4096, 4096)
        assert bytes(blk.payload[:4096]) == b"a" * 4096
        assert theirs.recv(8192, socket.MSG_WAITALL) == b"a" * 8192


def test_pages_that_are_locked(pipe: tuple[int, int], tmp_path: Path) -> None:
    """They cannot be dropped, so other ones are mapped."""
    libc = ctypes.CDLL(None, use_errno=True)
    out, blk = _output.OutputBuffer(pipe[1]), _core.BlockBuffer("given")
    fill(blk, "fill", b"x" * MIB, tmp_path)
    with blk.data as view:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(2 * MIB)) < 0:
        pytest.skip(f"this user may not lock 2 MiB of memory: {os.strerror(ctypes.get_errno())}")
    for half in range(5):
        fill(blk, "fill", bytes([65 + half]) * MIB, tmp_path)
        out.put_payload(blk, 0, mmap.PAGESIZE)
    assert os.read(pipe[0], MIB) == b"".join(bytes([65 + half]) * mmap.PAGESIZE for half in range(5))


def test_it_is_for_sending() -> None:
    with pytest.raises(ValueError, match="is for sending"):
        _storing.StoringQueue(0, 1, 1, 1).put(_core.BlockBuffer("given"), -1, 0, False)
