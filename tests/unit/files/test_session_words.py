# SPDX-License-Identifier: GPL-2.0-or-later
"""Session files that came whole and say what no blkmig says: a clear error, and nothing of the disks is touched."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

import blkmig
from blkmig import errors
from blkmig.files import folder, partial, sessionfile, sessionwords, taken

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1 << 70, -(1 << 63), "", "x", "/", "..", "/..", "a/b", "\0", "\ud800", "/a\0b"),
    *([], [None], [[]], ["/", "x"], ["/", "../x"], ["x"], {}, {"path": "/x"}, {"path": 1, "inode": "1"}, [{}], [7]),
    *(float("nan"), float("inf"), "see", "committing", "committed", "noted", "open", ["/"] * 3, [{"path": "/x"}]),
]
KEYS = ("id", "side", "state", "end", "disks", "first", "path", "inode", "replaces", "key")


def leave(path: Path, text: bytes) -> None:
    """Leave a session file beside a disk, whose newer slot has this text and is whole."""
    half = -(-(len(text) + 64) // sessionfile.PAGE) * sessionfile.PAGE
    numbers = struct.pack(">QI", 1, len(text))
    head = sessionfile.MAGIC + numbers + struct.pack(">I", zlib.crc32(text, zlib.crc32(numbers[:8])))
    path.with_name(sessionfile.session_name(path.name)).write_bytes((head + text).ljust(half, b"\0") + bytes(half))


def texts(path: Path, rng: random.Random) -> bytes:
    """Return a text that is a sound one with some values changed, or something else altogether."""
    made = path.with_name(partial.partial_name(path.name))
    about = {"path": str(path), "is_file": True, "inode": made.stat().st_ino}
    state = rng.choice(("open", "noted", "committing", "committed", "see"))
    says: Any = {"id": "1", "side": "target", "state": state, "end": 1, "disks": [about]}
    if state == "see":
        says = {"id": "1", "state": "see", "first": [str(path.parent), "other"]}
    for _ in range(rng.randrange(1, 4)):
        place = rng.choice([says, about])
        key = rng.choice([key for key in place if key in KEYS] or KEYS)
        if rng.random() < 0.3:
            place.pop(key, None)
        else:
            place[key] = rng.choice(ODD)
    if rng.random() < 0.1:
        says = rng.choice(ODD)
    return json.dumps(says).encode()


def check(path: Path) -> str:
    """Meet what is there: it may be refused, or say something of the disk, and nothing else."""
    try:
        with errors.failing("cannot look for its session file", device="d"):
            taken.meet(str(path), device="d")
    except errors.InDoubt:
        return "in doubt"
    except errors.DeviceError as error:
        return "damaged" if "no session file of blkmig, or damaged" in str(error) else str(error)
    return "nothing"


def test_odd_contents(tmp_path: Path) -> None:
    rng, found = random.Random(1), set()
    for number in range(1500):
        (place := tmp_path / str(number)).mkdir()
        path = place / "d.raw"
        made = path.with_name(partial.partial_name(path.name))
        made.write_bytes(b"the only owner's disk")
        text = texts(path, rng)
        leave(path, text)
        outcome = check(path)
        found.add(outcome)
        there = [each.read_bytes() for each in (made, path) if each.exists()]
        assert there == [b"the only owner's disk"], f"seed 1, number {number}: {text!r}"
    assert found == {"in doubt", "damaged", "nothing"}


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[" * 200_000, b"{" * 1000, b"1" * 5000, b'{"state":' + b"9" * 5000 + b"}", b"\xff\xfe", b"null"),
        *(b'{"state":"noted"', b'{"state":"\xff"}', b'{"id":"1","state":"noted","disks":' + b"[" * 100_000 + b"}"),
    ],
    ids=len,
)
def test_what_is_no_object(tmp_path: Path, text: bytes) -> None:
    leave(tmp_path / "d.raw", text)
    assert check(tmp_path / "d.raw") == "damaged"


def test_a_receiver_says_so_before_anything_is_touched(tmp_path: Path) -> None:
    disk = tmp_path / "d.raw"
    disk.write_bytes(b"x" * 4096)
    leave(disk, b'{"state":"noted","id":[]}')
    receiver = blkmig.IncomingMigration(f"unix:{tmp_path}/s", {"d": disk})
    with pytest.raises(errors.DeviceError, match=r"\.d\.raw\.blkmig is no session file of blkmig"), receiver:
        pass
    assert disk.read_bytes() == b"x" * 4096


@pytest.mark.parametrize(
    ("said", "is_sound"),
    [
        ({"key": "0" * 32, "seconds": 60, "end": 1}, True),
        ({"key": "0" * 32, "seconds": 60, "end": 1, "secret": "a1" * 64}, True),
        ({"key": "0" * 31, "seconds": 60, "end": 1}, False),
        ({"seconds": 60, "end": 1, "secret": "a1" * 64}, False),
        ({"key": "0" * 32, "seconds": 1 << 32, "end": 1}, False),
        *(
            ({"key": "0" * 32, "seconds": 60, "end": 1, "secret": bad}, False)
            for bad in ("", "a1" * 63, "a1" * 65, "A1" * 64, "zz" * 64, "a1" * 64 + "\n", 7, None, ["a1" * 64])
        ),
    ],
    ids=str,
)
def test_what_answers_a_source_that_asks(said: dict[str, Any], is_sound: bool) -> None:
    says = {"id": "1", "side": "target", "state": "committing", "disks": [], **said}
    assert sessionwords.is_sound(says) is is_sound


def test_what_blkmig_writes_is_sound(tmp_path: Path) -> None:
    """Whatever the names of the disks are."""
    for name in ("d.raw", "ä ö", "\udcff", "x" * 255, ".d", "..."):
        disk = sessionfile.Disk(str(tmp_path / name), inode=(1 << 64) - 1, replaces=0)
        says = {"id": "1", "side": "target", "state": "committing", "end": 1, "disks": [disk.says()]}
        assert sessionwords.is_sound(json.loads(json.dumps(says)))
        see = {"id": "1", "state": "see", "first": ["/", name]}
        assert sessionwords.is_sound(json.loads(json.dumps(see)))
    with contextlib.closing(folder.Folder(tmp_path)) as place:
        made = sessionfile.SessionFile(place, "d.raw", device="d")
        assert sessionwords.is_sound(made.says)
        made.close()
