# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of files that blkmig makes beside a disk are no names for disks and streams: that is told before the first
byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import blkmig
from blkmig import cli, errors

NAMES = [".x.raw.blkmig", ".x.raw.blkmig-partial", ".x.raw.source.blkmig", ".x-0123456789abcdef.blkmig"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "a.raw").write_bytes(b"a" * 4096)
    return tmp_path / "a.raw"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_target(tmp_path: Path, name: str, is_there: bool) -> None:
    """Alone, and beside the disk of which it is the session file: that failed when everything had come."""
    if is_there:
        (tmp_path / name).write_bytes(b"a" * 4096)
    for targets in ({"b": tmp_path / name}, {"a": tmp_path / "x.raw", "b": tmp_path / name}):
        with pytest.raises(errors.ParameterError, match="say another one"):
            blkmig.IncomingMigration(f"unix:{tmp_path}/s", targets).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [name] * is_there


def test_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_bytes(b"a" * 4096)
    (tmp_path / "b.raw").symlink_to(NAMES[0])
    with pytest.raises(errors.ParameterError, match="say another one"):
        blkmig.receive(f"unix:{tmp_path}/s", {"b": tmp_path / "b.raw"})


@pytest.mark.parametrize("name", NAMES)
def test_a_stream(tmp_path: Path, disk: Path, name: str) -> None:
    with pytest.raises(errors.ParameterError, match="say another one"):
        blkmig.send([disk], f"file:{tmp_path}/{name}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.raw"]


@pytest.mark.parametrize("option", ["--report", "--log-json", "--metrics", "--token-file"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_for_people(tmp_path: Path, disk: Path, name: str, option: str, capsys: Any) -> None:
    """It would be written into the session file of a disk that arrives."""
    words = ["receive", f"{option}={tmp_path}/{name}", f"unix:{tmp_path}/s", f"a={tmp_path}/x.raw"]
    assert cli.main(words) == 2
    assert f"{option} '{tmp_path}/{name}' cannot be at" in (found := capsys.readouterr().err), found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.raw"]


@pytest.mark.parametrize("name", ["x.blkmig", ".x.raw", ".blkmig", "blkmig-partial"])
def test_other_names_are_free(tmp_path: Path, disk: Path, name: str) -> None:
    blkmig.send([disk], f"file:{tmp_path}/s")
    blkmig.receive(f"file:{tmp_path}/s", {"a": tmp_path / name})
    assert (tmp_path / name).read_bytes() == disk.read_bytes()


@pytest.mark.parametrize(
    ("option", "way"),
    [
        *((option, way) for option in ("--report", "--log-json", "--metrics") for way in ("itself", "a link to it")),
        *((option, "hard link") for option in ("--report", "--log-json")),  # metrics replace it, and leave the other
    ],
)
def test_a_file_for_people_that_is_a_disk_of_the_folder(tmp_path: Path, option: str, way: str, capsys: Any) -> None:
    """Its name comes with the stream. It was called extended by another program, or the report was lost."""
    folder = tmp_path / "d"
    folder.mkdir()
    own = folder / "v.raw"
    if way == "hard link":
        own.touch()
        (own := tmp_path / "log").hardlink_to(folder / "v.raw")
    elif way == "a link to it":
        (tmp_path / "link").symlink_to("d")
        own = tmp_path / "link" / "v.raw"
    stream = tmp_path / "stream"
    blkmig.send([blkmig.MemoryBackend(bytearray(b"x" * 4096), name="v")], f"file:{stream}")
    assert cli.main(["receive", f"{option}={own}", f"--into={folder}", "--overwrite", f"file:{stream}"]) == 2
    said = capsys.readouterr().err
    assert f"{option} at '{own}' are the same file: give each a file of its own" in said
    assert not any(path.name.startswith(".") for path in folder.iterdir())
    assert blkmig.receive(f"file:{stream}", into=folder, overwrite=True).status == "completed", "it is known no more"
