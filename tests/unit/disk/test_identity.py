# SPDX-License-Identifier: GPL-2.0-or-later
"""Which file is it: one file under several names, and what has become of it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import disks
import pytest

from blkmig.disk import identity

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.raw"
    path.write_bytes(b"x" * 4 * MIB)
    return path


def known(path: Path | str, **options: bool) -> identity.KnownFile:
    return identity.KnownFile.of(path, **options)


def test_every_name_of_a_file(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A4: a name is no identity."""
    os.link(path, tmp_path / "hard")
    (tmp_path / "soft").symlink_to("hard")
    monkeypatch.chdir(tmp_path)
    for name in ("a.raw", "hard", "soft", "../" + tmp_path.name + "/soft"):
        assert identity.is_same(known(path), known(name)), name
    (tmp_path / "other").write_bytes(path.read_bytes())
    assert not identity.is_same(known(path), known("other"))


def test_files_that_do_not_exist_yet(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("folder/new")
    assert identity.is_same(known(tmp_path / "folder" / "new"), known(tmp_path / "link" / "new"))
    assert identity.is_same(known(tmp_path / "folder" / "new"), known(tmp_path / "dangling"))
    assert not identity.is_same(known(tmp_path / "folder" / "new"), known(tmp_path / "new"))
    assert not identity.is_same(known("/nonexistent/a"), known("/nonexistent/a"))


def test_a_loop_device_is_its_file(path: Path) -> None:
    with disks.loop_device(path) as device, disks.loop_device(path) as second:
        assert identity.is_same(known(device), known(path))
        assert identity.is_same(known(path), known(device))
        assert identity.is_same(known(second), known(device))
    with disks.loop_device(path, "--offset=1048576", "--sizelimit=1048576") as part:
        with disks.loop_device(path, "--offset=2097152") as rest:
            assert identity.is_same(known(part), known(path))
            assert not identity.is_same(known(part), known(rest)), "two parts of one file"


def test_a_partition_lies_on_its_disk(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(446))
        for start in (2048, 3072):
            file.write(struct.pack("<B3xB3xII", 0, 0x83, start, 1024))
        file.write(bytes(32) + b"\x55\xaa")
    with disks.loop_device(path, "--partscan") as device:
        parts = [Path(f"{device}p{number}") for number in (1, 2)]
        if not all(part.exists() for part in parts):
            pytest.skip("no device nodes for partitions of loop devices")
        one, two = map(known, parts)
        assert identity.is_same(one, known(device))
        assert identity.is_same(one, known(path))
        assert not identity.is_same(one, two)


def test_what_has_become_of_a_file(tmp_path: Path, path: Path) -> None:
    """A10, A11: looked at again, by size, times and name."""
    file = known(path, is_tracked=False)
    path.read_bytes()
    assert file.change() is None, "reading is no change"
    with path.open("r+b") as other:
        other.write(b"y")
    assert file.change() == "was changed by another program"
    assert known(path).change() is None
    file = known(path, is_tracked=False)
    os.truncate(path, 5 * MIB)
    assert file.change() == f"grew from {4 * MIB} to {5 * MIB} bytes"
    assert known(path).change() is None, "who tracks it knows"
    (tmp_path / "new").write_bytes(b"")
    tracked = known(path)
    (tmp_path / "new").rename(path)
    assert tracked.change() == "was replaced by another file"
    path.unlink()
    assert tracked.change() == "was removed"
    assert not tracked.is_still_named()
