# SPDX-License-Identifier: GPL-2.0-or-later
"""File systems that are too small for the disks that come: real ones, of 32 MiB."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command
import disks
import lab
import pytest

import blkmig
from blkmig import errors

MIB = lab.MIB
SIZE = 9 * MIB + 512
CONTENTS = {name: random.Random(name).randbytes(SIZE) for name in "ab"}
FILLER = 14 * MIB


@contextlib.contextmanager
def little_room(kind: str, folder: Path) -> Iterator[Path]:
    """Yield a file system with room for one of the disks, and for both once "filler" is removed."""
    place = folder / "mounted"
    is_ext4 = kind == "ext4"
    image = folder / "image"
    with disks.mounted(image, place, 32 * MIB) if is_ext4 else disks.mounted_memory(place, 32 * MIB):
        with (place / "filler").open("wb") as filler:
            room = os.statvfs(place)
            os.posix_fallocate(filler.fileno(), 0, room.f_bavail * room.f_frsize - SIZE - 2 * MIB)
        yield place


def make_target(path: Path, kind: str) -> None:
    """Make a target that is there before, without room or with it."""
    if kind != "new":
        with path.open("wb") as file:
            file.truncate(SIZE)
            if kind == "allocated":
                os.posix_fallocate(file.fileno(), 0, SIZE)


def migrate(place: Path, targets: dict[str, Path], *, verify: bool, section: str) -> tuple[Any, Any]:
    """Migrate both disks, and return the error of each end, None for a good one."""
    receiver = lab.Receiver(f"unix:{place.parent}/s", targets, verify=verify)
    sources = [blkmig.MemoryBackend(bytearray(content), name=name) for name, content in CONTENTS.items()]
    ends: list[Any] = [None, None]
    for number, call in enumerate(
        (lambda: blkmig.send(sources, receiver.uri, format=section, digests=verify), receiver.result)
    ):
        try:
            call()
        except errors.MigrationError as error:
            ends[number] = error
    return ends[0], ends[1]


@pytest.mark.parametrize("file_system", ["ext4", "tmpfs"])
@pytest.mark.parametrize("kind", ["new", "sparse", "allocated"])
@pytest.mark.parametrize("section", ["blkmig", "block"])
@pytest.mark.parametrize("verify", [False, True])
def test_disks_that_do_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file_system: str, kind: str, section: str, verify: bool
) -> None:
    """Told at once, refused when the data is too much for it, at both ends; and the next run works if there is room."""
    with little_room(file_system, tmp_path) as place:
        before = {*place.iterdir()}
        targets = {name: place / f"{name}.raw" for name in CONTENTS}
        make_target(targets["a"], kind)
        make_target(targets["b"], "new" if kind == "new" else "sparse")
        sent, came = migrate(place, targets, verify=verify, section=section)
        assert caplog.text.count("the disks may take") == 1
        assert isinstance(came, errors.DeviceError)
        assert (came.errno, came.exit_code) == (errno.ENOSPC, 1)
        assert came.device in CONTENTS  # each disk is stored by a thread of its own
        assert f"at offset {came.offset}" in str(came)
        assert str(came).endswith("No space left on device; make room there")
        assert isinstance(sent, errors.TargetFailed)
        assert (sent.errno, sent.exit_code) == (errno.ENOSPC, 1)
        if section == "blkmig":
            assert str(sent).endswith(str(came))
            assert (sent.device, sent.offset) == (came.device, came.offset)
        for name, path in targets.items():
            state = "was not made" if kind == "new" else "holds a part of the disk: do not use it"
            assert any(repr(str(path)) in note and state in note for note in came.__notes__), (name, came.__notes__)
        assert {*place.iterdir()} == before | (set() if kind == "new" else {*targets.values()})
        (place / "filler").unlink()
        assert migrate(place, targets, verify=verify, section=section) == (None, None)
        assert {name: path.read_bytes() for name, path in targets.items()} == CONTENTS


def test_each_end_says_what_to_do(tmp_path: Path) -> None:
    """On the command line, also of a stream that goes into a file: one line and one exit code."""
    for name, content in CONTENTS.items():
        (tmp_path / f"{name}.raw").write_bytes(content)
    words = [f"{name}={tmp_path}/{name}.raw" for name in CONTENTS]
    with little_room("tmpfs", tmp_path) as place:
        with command.receiver(f"unix:{tmp_path}/s", f"--into={place}") as receiver:
            sent = command.run("send", *words, receiver.uri, "--progress=none")
            came = receiver.finish()
        filed = command.run("send", *words, f"file:{place}/stream", "--progress=none")
    # Each disk is stored by a thread of its own: there may be no room for either.
    for end, most in ((sent, 1), (came, len(CONTENTS)), (filed, 1)):
        assert end.exit_code == 1
        assert "Traceback" not in end.stderr
        assert end.stderr.count("No space left on device") == end.stderr.count("make room there")
        assert 1 <= end.stderr.count("make room there") <= most, end.stderr


@pytest.mark.parametrize("section", ["blkmig", "block"])
@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_name_takes_no_room(tmp_path: Path, section: str, writers_after: str) -> None:
    """Where there can be no file besides the disk's, and no second name for it, it gets its name all the same."""
    with disks.mounted_memory(tmp_path / "mounted", 32 * MIB, inodes=2):
        target = tmp_path / "mounted" / "a.raw"
        receiver = lab.Receiver(f"unix:{tmp_path}/s", {"a": target})
        source = blkmig.MemoryBackend(bytearray(CONTENTS["a"]), name="a")
        sent = blkmig.send([source], receiver.uri, format=section, writers_after=writers_after)
        assert (sent.notes, receiver.result().notes) == ([], [])
        assert target.read_bytes() == CONTENTS["a"]
        assert [*target.parent.iterdir()] == [target]
