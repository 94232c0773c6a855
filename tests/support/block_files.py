# SPDX-License-Identifier: GPL-2.0-or-later
"""Files with known contents for tests of block I/O."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

from blkmig import _core

MiB = 1 << 20


@pytest.fixture
def blk() -> _core.BlockBuffer:
    block = _core.BlockBuffer()
    block.data[:] = b"\xee" * MiB  # what was there before must not shine through
    block.filled(MiB)
    return block


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Callable[[bytes], int]]:
    """Return a function that makes a file with some content and gives its fd."""
    with contextlib.ExitStack() as stack:

        def make(content: bytes) -> int:
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            path.write_bytes(content)
            fd = os.open(path, os.O_RDWR)
            stack.callback(os.close, fd)
            return fd

        yield make


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)
