# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders that are made for disks."""

from __future__ import annotations

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
