# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams whose payloads are pages of a file, and their receiving end, on the level of `_core`."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blkmig import _core, _input, _output
from blkmig.channel import buffers

MiB = _core.BLOCK_SIZE
EOS = 2


class Sender(threading.Thread):
    """Sends blocks of a file as pages, with other records between them unless it is `plain`, and closes its end."""

    def __init__(self, fd: int, path: Path, blocks: list[int], *, plain: bool = False) -> None:
        super().__init__()
        self.fd, self.path, self.blocks, self.plain = fd, path, blocks, plain
        self.start()

    def run(self) -> None:
        with self.path.open("rb") as file:
            mapping = _core.Mapping(file.fileno(), self.path.stat().st_size)
            out, blk = _output.OutputBuffer(self.fd), _core.BlockBuffer("lent")
            assert out.share_pages()
            out.put_byte(7)
            for number, block in enumerate(self.blocks):
                if number % 3 == 1 and not self.plain:
                    out.put_be64(number << 9 | 4)
                if number % 4 == 3 and not self.plain:
                    out.put_zero_records(number * 2048, 5000, b"zero")
                assert not blk.fill_mapped(mapping, file.fileno(), block * MiB, MiB)
                out.put_block(block * 2048, 1, b"disk" * (1 if self.plain else 1 + number % 2), blk)
            out.put_be64(EOS)
            out.flush()
        os.close(self.fd)


def is_tcp(fd: int) -> bool:
    """Return whether this is a TCP socket; else it is a Unix socket or a pipe."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.family in (socket.AF_INET, socket.AF_INET6)


def receiver(fd: int, capacity: int = 65536, **options: int) -> tuple[_input.InputBuffer, _core.BlockBuffer]:
    os.set_blocking(fd, False)
    tcp = is_tcp(fd)
    source, blk = buffers.open_input(fd, is_tcp=tcp, capacity=capacity, **options), _core.BlockBuffer("piped")
    buffers.expect_pages(source, is_tcp=tcp)
    return source, blk


def each_block(stream: _input.InputBuffer, blk: _core.BlockBuffer) -> Iterator[int]:
    """Yield the number of each block, with its payload in `blk`; the zero records are counted."""
    assert stream.get_byte() == 7
    zeros = 0
    while True:
        flags, _, sector, count = stream.next_run()
        if flags == EOS:
            break
        if flags == 9:
            zeros += count
        if flags == 1:
            stream.get_block(blk)
            yield sector // 2048
    assert zeros % 5000 == 0
    with pytest.raises(EOFError):
        stream.get_byte()
