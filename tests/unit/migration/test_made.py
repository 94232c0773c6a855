# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver makes has a name on stable storage at any moment, whatever the file system does when the power fails.
"""

from __future__ import annotations

from pathlib import Path

import name_log
import pytest

from blkmig import sources
from blkmig.files import folder, partial, taken
from blkmig.migration import made

CONTENT = b"the only owner's disk"


@pytest.fixture(params=["new", "prepared", "replaces another"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> sources.TargetFile:
    place = tmp_path / "disks"
    place.mkdir()
    if request.param != "new":
        (place / "d.raw").write_bytes(b"old" if request.param == "replaces another" else b"")
    return sources.TargetFile("d.raw", label="d", into=place, overwrite=request.param == "replaces another")


@pytest.fixture
def log(target: sources.TargetFile, monkeypatch: pytest.MonkeyPatch) -> name_log.NameLog:
    return name_log.NameLog(Path(target.path).parent, monkeypatch)


def begun(target: sources.TargetFile) -> tuple[made.MadeTargets, int]:
    """Return what makes the target, as it is when all of it has come, and the number of its file."""
    targets = made.MadeTargets()
    targets.prepare(target)
    [about] = targets.abouts()
    assert about.inode is not None
    return targets, about.inode


def names(place: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in place.iterdir()}


def test_a_disk_that_is_taken_always_has_a_name(target: sources.TargetFile, log: name_log.NameLog) -> None:
    targets, inode = begun(target)
    targets.check()
    targets.keep()
    assert targets.give_names() == {}
    assert names(Path(target.path).parent) == {"d.raw": inode}
    assert all(left["d.raw"] == inode for left in log.at_last())
    targets.confirm()
    targets.sync()
    assert log.at_last() == [{"d.raw": inode}], "nothing says any more that it is half made"
    assert log.never_loses(inode)
    targets.discard(None, {})


def test_a_copy_that_is_told_always_has_a_name(target: sources.TargetFile, log: name_log.NameLog) -> None:
    targets, inode = begun(target)
    targets.publish()
    assert all(left["d.raw"] == inode for left in log.at_last())
    targets.confirm()
    assert log.at_last() == [{"d.raw": inode}]
    assert log.never_loses(inode)
    targets.discard(None, {})


@pytest.mark.parametrize("replaces", [False, True])
def test_a_name_that_a_restart_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool) -> None:
    path = tmp_path / "d.raw"
    hidden = path.with_name(partial.partial_name("d.raw"))
    hidden.write_bytes(CONTENT)
    inode, about = hidden.stat().st_ino, {"path": str(path), "inode": hidden.stat().st_ino}
    if replaces:
        path.write_bytes(b"old")
        about["replaces"] = path.stat().st_ino
    log = name_log.NameLog(tmp_path, monkeypatch)
    taken.give_name(about)
    assert log.at_last() == [{"d.raw": inode}]
    assert log.never_loses(inode)


def test_a_run_that_was_killed_while_it_replaced_a_file_leaves_nothing(tmp_path: Path) -> None:
    """Its third name, which keeps the room that all of the disk takes."""
    (tmp_path / "d.raw").write_bytes(b"old")
    mark = tmp_path / partial.partial_name("d.raw")
    mark.write_bytes(CONTENT)
    (tmp_path / folder.hidden_name("d.raw", folder.SECOND_SUFFIX)).hardlink_to(mark)
    target = sources.TargetFile("d.raw", label="d", into=tmp_path, overwrite=True)
    target.prepare()
    assert {path.name for path in tmp_path.iterdir()} == {"d.raw", mark.name}
    target.discard(withdraw=True)
    assert {path.name for path in tmp_path.iterdir()} == {"d.raw"}
