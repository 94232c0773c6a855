# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders that are made for disks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from blkmig.files import folder


def test_a_folder_that_was_made_is_on_stable_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own name, and not only those in it: the only owner's disk may get there."""
    synced: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr("os.fsync", noted)
    for path in (tmp_path / "one" / "two", tmp_path / "one" / "three"):
        place = folder.Folder(path, create=True)
        place.close()
    assert [made.name for made in place.made] == ["three"]
    assert synced == [str(tmp_path), str(tmp_path / "one"), str(tmp_path / "one")]


def test_a_read_only_file_system_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its permissions are as they are elsewhere."""
    about = list(os.statvfs(tmp_path))
    about[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: os.statvfs_result(about))
    monkeypatch.setattr(os, "access", lambda *_args, **_options: False)
    with contextlib.closing(folder.Folder(tmp_path)) as place, pytest.raises(OSError, match="Read-only file system"):
        place.check_writable()
