# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is written over objects: what was read there instead of addresses was a crash, at once or at their end."""

from __future__ import annotations

import ctypes
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blkmig import _core

WRITES: list[Callable[[int, Any], object]] = [
    lambda fd, buffer: _core.pread_full(fd, buffer, 0),
    lambda _, buffer: _core.put_byte(buffer, 0, 1),
    lambda _, buffer: _core.put_be64(buffer, 0, 1),
    lambda _, buffer: _core.put_block_header(buffer, 0, 1, 1, b"vda"),
    lambda _, buffer: _core.put_zero_records(buffer, 0, 1, 1, b"vda"),
]
OBJECTS: list[Callable[[], Any]] = [
    lambda: np.array([object() for _ in range(8)]),
    lambda: np.zeros(8, [("a", "u1"), ("b", "O")]),
    lambda: (ctypes.py_object * 8)(),
    lambda: (ctypes.c_char_p * 8)(),
    lambda: (ctypes.c_wchar_p * 8)(),
]
PLAIN: list[Callable[[], Any]] = [
    lambda: bytearray(64),
    lambda: memoryview(bytearray(64)).cast("d"),
    lambda: np.zeros((4, 4), ">c16"),
    lambda: np.zeros(8, [("O", "u4"), ("X", "f8")]),
    lambda: (ctypes.c_int64 * 8)(),
    lambda: _core.Bitmap(512),
    lambda: _core.BlockBuffer("own"),
]


@pytest.fixture
def fd(tmp_path: pathlib.Path) -> Any:
    (tmp_path / "file").write_bytes(b"\x55" * 64)
    opened = os.open(tmp_path / "file", os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("make", OBJECTS)
def test_objects_are_not_written_over(fd: int, write: Any, make: Any) -> None:
    buffer = make()
    before = bytes(memoryview(buffer).cast("B")) if isinstance(buffer, ctypes.Array) else buffer.tobytes()
    with pytest.raises(TypeError, match="nothing is written over objects"):
        write(fd, buffer)
    assert before == (bytes(memoryview(buffer).cast("B")) if isinstance(buffer, ctypes.Array) else buffer.tobytes())


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("make", PLAIN)
def test_plain_items_are(fd: int, write: Any, make: Any) -> None:
    """Whatever their fields are called."""
    buffer = make()
    write(fd, buffer)
    assert not _core.buffer_is_zero(buffer)


@pytest.mark.parametrize("verb", ["fill_extents", "store_extents"])
def test_a_list_that_grows_while_it_is_read(tmp_path: pathlib.Path, verb: str) -> None:
    """There is room for 256 extents, and the list was as long as it liked: a crash."""
    extents: list[Any] = []

    class Growing:
        def __index__(self) -> int:
            extents.extend([(0, 1)] * 100)
            return 1

    extents += [(0, Growing())] * 200
    (tmp_path / "file").write_bytes(b"x")
    blk = _core.BlockBuffer("own")
    opened = os.open(tmp_path / "file", os.O_RDWR)
    getattr(blk, verb)(opened, extents)
    os.close(opened)
    assert len(extents) > 20000
