# SPDX-License-Identifier: GPL-2.0-or-later
"""What a killed receiver had taken gets its names, whoever comes next, and nothing of it is removed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from blkmig import errors
from blkmig.files import folder, partial, sessionfile, taken

CONTENT = b"the only owner's disk"


def hidden(path: Path) -> Path:
    return path.with_name(partial.partial_name(path.name))


def session(*disks: Path, state: str, replaces: Path | None = None) -> None:
    """Leave the session files of a killed process beside these disks, of which those that are hidden were made."""
    abouts = []
    for path in disks:
        made = hidden(path).stat().st_ino if hidden(path).exists() else None
        replaced = replaces.stat().st_ino if replaces == path else None
        abouts.append(sessionfile.Disk(str(path), inode=made, replaces=replaced).says())
    for path in disks:
        see = {"id": "1", "state": "see", "first": [str(disks[0].parent), disks[0].name]}
        says: dict[str, Any] = {"id": "1", "state": state, "end": 1, "disks": abouts} if path == disks[0] else see
        with contextlib.closing(folder.Folder(path.parent)) as place:
            found = sessionfile.SessionFile(place, path.name, device="d")
            found.begin(says)
            found.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    hidden(path).write_bytes(CONTENT)
    return path


def meet(path: Path) -> str:
    with pytest.raises(errors.InDoubt) as caught:
        taken.meet(str(path), device="vda")
    return str(caught.value)


def test_a_disk_without_a_session_file(disk: Path) -> None:
    taken.meet(str(disk), device="vda")
    taken.meet(str(disk / "no folder" / "x"), device="vda")
    assert hidden(disk).read_bytes() == CONTENT


@pytest.mark.parametrize("state", ["open", "committed"])
def test_nothing_speaks_against_what_was_not_decided_or_is_over(disk: Path, state: str) -> None:
    session(disk, state=state)
    taken.meet(str(disk), device="vda")
    assert not disk.exists()


def test_a_mark_that_came_back_is_removed(disk: Path) -> None:
    """A power failure has undone that it was removed, and nothing else: the disk does not count as half made."""
    session(disk, state="committed")
    disk.hardlink_to(hidden(disk))
    taken.meet(str(disk), device="vda")
    assert disk.read_bytes() == CONTENT
    assert not hidden(disk).exists()


def test_the_missing_name_is_given_once(disk: Path) -> None:
    session(disk, state="committing")
    assert repr(str(disk)) in meet(disk)
    assert disk.read_bytes() == CONTENT
    assert not hidden(disk).exists()
    taken.meet(str(disk), device="vda")  # it says committed by now


@pytest.mark.parametrize("has_mark", [True, False])
def test_a_name_that_was_given_before_the_kill(disk: Path, has_mark: bool) -> None:
    session(disk, state="committing")
    disk.hardlink_to(hidden(disk))
    if not has_mark:
        hidden(disk).unlink()
    meet(disk)
    assert disk.read_bytes() == CONTENT
    assert not hidden(disk).exists()


def test_a_file_that_it_replaces(disk: Path) -> None:
    disk.write_bytes(b"old")
    disk.chmod(0o640)
    session(disk, state="committing", replaces=disk)
    meet(disk)
    assert disk.read_bytes() == CONTENT
    assert disk.stat().st_mode & 0o777 == 0o640


def test_somebody_has_made_a_file_of_that_name(disk: Path) -> None:
    session(disk, state="committing")
    disk.write_bytes(b"somebody else's")
    for _ in range(2):  # it goes on saying committing
        assert "has not got its name" in meet(disk)
        assert (disk.read_bytes(), hidden(disk).read_bytes()) == (b"somebody else's", CONTENT)
    disk.unlink()
    assert "has not got its name" not in meet(disk)
    assert disk.read_bytes() == CONTENT


def test_neither_name_is_the_disk(disk: Path) -> None:
    session(disk, state="committing")
    other = disk.with_name("other")
    other.write_bytes(b"made by a later run")
    other.replace(hidden(disk))
    assert "has not got its name" in meet(disk)
    assert hidden(disk).read_bytes() == b"made by a later run"
    assert not disk.exists()


def test_whichever_disk_is_met_all_get_their_names(tmp_path: Path) -> None:
    disks = [tmp_path / name / "v.raw" for name in "abc"]
    for path in disks:
        path.parent.mkdir()
        hidden(path).write_bytes(path.parent.name.encode())
    session(*disks, state="committing")
    meet(disks[1])
    assert [path.read_bytes() for path in disks] == [b"a", b"b", b"c"]
    for path in disks:
        taken.meet(str(path), device="d")


@pytest.mark.parametrize("how", ["gone", "another session"])
def test_a_file_that_leads_nowhere_says_nothing(disk: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "w.raw"
    hidden(other).write_bytes(b"w")
    session(disk, other, state="committing")
    first = disk.with_name(sessionfile.session_name(disk.name))
    first.unlink()
    if how == "another session":
        with contextlib.closing(folder.Folder(disk.parent)) as place:
            found = sessionfile.SessionFile(place, disk.name, device="d")
            found.begin({"id": "2", "state": "committing", "disks": []})
            found.close()
    taken.meet(str(other), device="d")
    assert not other.exists()


def test_a_disk_that_may_have_moved_away(disk: Path) -> None:
    session(disk, state="noted")
    text = meet(disk)
    for word in ("may have moved", "Look on the target", "blkmig receive", "remove"):
        assert word in text
    assert meet(disk) == text


def test_what_was_read_is_stored_again_before_a_name_is_given(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed store may stand in the page cache, and nowhere else."""
    session(disk, state="committing")

    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fdatasync", failing)
    with pytest.raises(OSError, match="Input/output"):
        taken.meet(str(disk), device="vda")
    assert not disk.exists()
    assert hidden(disk).read_bytes() == CONTENT


@pytest.mark.parametrize("disk_of_it", ["/dev/vg/vda", "nbd://host/vda", "/images/vda.raw"])
def test_in_a_folder_for_all(tmp_path: Path, disk_of_it: str) -> None:
    """Disks of one name, in several places, have files of their own."""
    state_dir = str(tmp_path)
    for path in (disk_of_it, "/elsewhere/vda"):
        where, name = sessionfile.where(path, state_dir)
        with contextlib.closing(folder.Folder(where)) as place:
            found = sessionfile.SessionFile(place, name, device="d")
            state = "noted" if path == disk_of_it else "open"
            found.begin({"id": "1", "state": state, "disks": [{"path": path, "is_file": False}]})
            found.close()
    with pytest.raises(errors.InDoubt, match=disk_of_it):
        taken.meet(disk_of_it, device="vda", state_dir=state_dir)
    taken.meet("/elsewhere/vda", device="vda", state_dir=state_dir)
    taken.meet(disk_of_it, device="vda")
