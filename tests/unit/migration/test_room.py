# SPDX-License-Identifier: GPL-2.0-or-later
"""What the targets may take of a file system, against what is free there: all of it is added up, and told once."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest

from blkmig.disk import identity
from blkmig.migration import room

MIB = 1 << 20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Return what a file system has: `f_bavail` blocks of 1 MiB."""
    has = types.SimpleNamespace(f_bavail=10, f_frsize=MIB)
    monkeypatch.setattr(os, "statvfs", lambda _: has)
    return has


def file(path: Path, nbytes: int) -> Path:
    path.write_bytes(b"x" * nbytes)
    return path


def target(path: Path, *, is_new: bool, mark: Path | None = None) -> Any:
    return types.SimpleNamespace(
        path=str(path), is_new=is_new, mark=lambda: None if mark is None else identity.KnownFile.of(mark)
    )


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.usefixtures("free")
def test_the_sum_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not that of the disks up to the first one too many."""
    wanted = room.Room()
    for name in "abc":
        wanted.want_for(target(tmp_path / name, is_new=True), 6 * MIB)
    wanted.warn()
    wanted.warn()
    assert told(caplog) == [
        f"the disks may take 18.0 MiB of the file system of {tmp_path}, which has 10.0 MiB free: they fit only if at "
        "least 8.0 MiB of them are zeros"
    ]


@pytest.mark.parametrize("third", [3, 5])
def test_what_the_first_disks_have_taken_is_not_counted_twice(
    tmp_path: Path, free: types.SimpleNamespace, caplog: pytest.LogCaptureFixture, third: int
) -> None:
    """Of a QEMU, disks appear one after the other, and those before are there by then."""
    wanted = room.Room()
    for name, size in (("a", 3), ("b", 3), ("c", third)):
        wanted.want_for(target(tmp_path / name, is_new=True), size * MIB)
        wanted.warn()
        free.f_bavail -= size
    assert len(told(caplog)) == (third == 5)


@pytest.mark.usefixtures("free")
def test_what_is_held_already_need_not_be_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the file itself, or by the hidden one of an earlier run; a file that is replaced stays till the end."""
    old, hidden = file(tmp_path / "old", 8 * MIB), file(tmp_path / "hidden", 8 * MIB)
    for existing in (target(old, is_new=False), target(tmp_path / "new", is_new=True, mark=hidden)):
        wanted = room.Room()
        wanted.want_for(existing, 12 * MIB)
        wanted.warn()
    assert not told(caplog)
    wanted.want_for(target(old, is_new=True, mark=tmp_path / "nothing"), 12 * MIB)
    wanted.warn()
    assert "may take 16.0 MiB" in told(caplog)[0]
