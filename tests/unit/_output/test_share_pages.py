# SPDX-License-Identifier: GPL-2.0-or-later
"""Handing a file's pages to a pipe or a socket instead of a copy: the bytes are right, and so are the errors."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from pathlib import Path

import pytest
from fd_pairs import open_pair

from blkmig import _core, _output

SIZE = 3 * _core.BLOCK_SIZE


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


class Reader(threading.Thread):
    """Reads all there is, slowly at first."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd, self.data = fd, bytearray()
        self.start()

    def run(self) -> None:
        while piece := os.read(self.fd, 50_000):
            self.data += piece


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp"])
def test_same_bytes(source: Path, kind: str) -> None:
    readable, writable = open_pair(kind)
    reader = Reader(readable)
    with source.open("rb") as file:
        mapping = _core.Mapping(file.fileno(), SIZE)
        out, blk = _output.OutputBuffer(writable), _core.BlockBuffer()
        assert out.share_pages()
        expected = bytearray()
        for number in (0, 2, 1):
            offset = number * _core.BLOCK_SIZE
            assert not blk.fill_mapped(mapping, file.fileno(), offset, _core.BLOCK_SIZE)
            out.put_zero_records(number, 3, b"zero")
            out.put_block(offset >> 9, 1, b"disk", blk)
            head = bytearray(200)
            end = _core.put_zero_records(head, 0, number, 3, b"zero")
            end = _core.put_block_header(head, end, offset >> 9, 1, b"disk")
            expected += head[:end] + source.read_bytes()[offset : offset + _core.BLOCK_SIZE]
        out.flush()
        assert out.position == out.flushed == len(expected)
    os.close(writable)
    reader.join(20)
    os.close(readable)
    assert reader.data == expected


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp"])
def test_a_file_that_is_cut_while_its_pages_are_sent(source: Path, kind: str) -> None:
    """What was cut reads as zeros; the record keeps its length."""
    readable, writable = open_pair(kind)
    with source.open("r+b") as file:
        mapping = _core.Mapping(file.fileno(), SIZE)
        out, blk = _output.OutputBuffer(writable), _core.BlockBuffer()
        assert out.share_pages()
        blk.fill_mapped(mapping, file.fileno(), _core.BLOCK_SIZE, _core.BLOCK_SIZE)
        file.truncate(_core.BLOCK_SIZE + 300_000)
        reader = Reader(readable)
        out.put_block(2048, 1, b"d", blk)
        out.flush()
    os.close(writable)
    reader.join(20)
    os.close(readable)
    content = source.read_bytes()[_core.BLOCK_SIZE :]
    assert reader.data[10:] == content.ljust(_core.BLOCK_SIZE, b"\0")


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp"])
def test_broken_peer_is_epipe_and_no_signal(source: Path, kind: str) -> None:
    readable, writable = open_pair(kind)
    os.close(readable)
    old = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with source.open("rb") as file:
            mapping = _core.Mapping(file.fileno(), SIZE)
            out, blk = _output.OutputBuffer(writable), _core.BlockBuffer()
            assert out.share_pages()
            blk.fill_mapped(mapping, file.fileno(), 0, _core.BLOCK_SIZE)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 - TCP hears of it a send later
                while True:
                    out.put_block(0, 1, b"d", blk)
    finally:
        signal.signal(signal.SIGPIPE, old)
        os.close(writable)


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp"])
def test_a_blocked_send_is_woken(source: Path, kind: str) -> None:
    readable, writable = open_pair(kind)
    wake = os.eventfd(0)
    with source.open("rb") as file:
        mapping = _core.Mapping(file.fileno(), SIZE)
        out, blk = _output.OutputBuffer(writable, wake_fd=wake), _core.BlockBuffer()
        assert out.share_pages()
        threading.Timer(0.1, os.eventfd_write, (wake, 1)).start()
        with pytest.raises(OSError, match="cancel") as caught:  # noqa: PT012 - the block that fills the pipe
            while True:
                blk.fill_mapped(mapping, file.fileno(), 0, _core.BLOCK_SIZE)
                out.put_block(0, 1, b"d", blk)
    for fd in (readable, writable, wake):
        os.close(fd)
    assert caught.value.errno == errno.ECANCELED


def test_a_block_that_may_not_be_mapped(source: Path) -> None:
    with source.open("rb") as file:
        mapping, blk = _core.Mapping(file.fileno(), SIZE), _core.BlockBuffer("own")
        blk.fill_mapped(mapping, file.fileno(), 0, _core.BLOCK_SIZE)
        mapping.close()
        assert bytes(blk.payload) == source.read_bytes()[: _core.BLOCK_SIZE]
        assert blk.payload.obj is blk
