# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading back past the page cache: the bytes are the file's, at any place, with and without O_DIRECT."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

import blkmig
from blkmig import errors
from blkmig.files import direct, storage

MIB = 1 << 20


@pytest.fixture(params=[True, False], ids=["direct", "cached"])
def is_direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:

        def no_direct(fd: int, *, writable: bool) -> int:
            raise OSError(errno.EINVAL, "no direct I/O here")

        monkeypatch.setattr(direct, "open_again", no_direct)
    return bool(request.param)


@pytest.mark.usefixtures("is_direct")
@pytest.mark.parametrize("size", [1, 511, 4096, MIB, 2 * MIB + 777])
def test_any_range(tmp_path: Path, size: int) -> None:
    content = random.Random(1).randbytes(size)
    (tmp_path / "d.raw").write_bytes(content)
    with blkmig.FileBackend(tmp_path / "d.raw", name="d") as disk:
        reader = disk.open_reader(is_target=True)
        assert reader is not None
        reader.settle()
        for offset in {0, size // 3, size - 1, max(0, size - MIB)}:
            nbytes = min(MIB, size - offset)
            assert reader.read(offset, nbytes) == content[offset : offset + nbytes]
        reader.close()
        reader.close()


@pytest.mark.usefixtures("is_direct")
def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(b"x" * MIB)
    with blkmig.FileBackend(tmp_path / "d.raw", name="d") as disk:
        reader = disk.open_reader(is_target=True)
        assert reader is not None
        os.truncate(tmp_path / "d.raw", 4096)
        with pytest.raises(errors.DeviceError, match="cut"):
            reader.read(8192, 4096)
        reader.close()
        os.truncate(tmp_path / "d.raw", MIB)


def test_where_the_data_is(tmp_path: Path) -> None:
    with blkmig.FileBackend(tmp_path / "d.raw", create_size=8 * MIB, name="d") as disk:
        disk.pwrite(b"x", 5 * MIB)
        reader = disk.open_reader(is_target=False)
        assert reader is not None
        assert reader.next_data(MIB) == 5 * MIB
        assert reader.next_data(6 * MIB) >= 8 * MIB
        reader.close()


def test_whether_pages_are_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "d.raw"
    path.write_bytes(b"x" * MIB)
    fd = os.open(path, os.O_RDONLY)
    assert storage.is_resident(fd, 0, MIB)
    assert storage.is_resident(fd, MIB - 4096, 2 * MIB)
    assert not storage.is_resident(fd, MIB, 4096), "there is nothing"
    os.close(fd)


def test_an_overlay_has_no_second_reader(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"x" * MIB)
    (tmp_path / "top.raw").write_bytes(bytes(MIB))
    with blkmig.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw", name="d") as disk:
        assert disk.open_reader(is_target=False) is None
