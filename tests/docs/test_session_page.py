# SPDX-License-Identifier: GPL-2.0-or-later
"""Session files are as docs/wire/session-file.md says, read by who knows that page and nothing of the package."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any, get_args

import blkmig
from blkmig.files import folder, sessionfile, sessionwords
from blkmig.migration import keyfile, sessions

PAGE = (Path(__file__).parents[2] / "docs" / "wire" / "session-file.md").read_text()


def slots(content: bytes) -> dict[int, dict[str, Any]]:
    """Return the texts of the slots that are whole, by their numbers."""
    half = len(content) // 2
    assert half % 4096 == 0
    found = {}
    for slot in (content[:half], content[half:]):
        magic, number, length, checksum = struct.unpack_from(">8sQII", slot)
        text = slot[24 : 24 + length]
        if magic == b"blkmigS1" and checksum == zlib.crc32(slot[8:16] + text):
            found[number] = json.loads(text)
    return found


def test_the_plain_reader_finds_what_was_stored_last(tmp_path: Path) -> None:
    files = sessions.SessionFiles("target", None)
    with contextlib.closing(files):
        disks = [sessionfile.Disk(str(tmp_path / name), inode=7, size=512) for name in ("a.raw", "b.raw")]
        files.begin(disks)
        files.may_be_asked(bytes(16), 60, bytes(64))
        files.store("committing", 3)
    found = slots((tmp_path / ".a.raw.blkmig").read_bytes())
    says = found[max(found)]
    assert (says["state"], says["side"], says["end"]) == ("committing", "target", 3)
    assert (says["key"], says["seconds"], says["secret"]) == ("0" * 32, 60, "0" * 128)
    assert [each["path"] for each in says["disks"]] == [disk.path for disk in disks]
    leads = slots((tmp_path / ".b.raw.blkmig").read_bytes())
    assert leads == {1: {"id": says["id"], "state": "see", "first": [str(tmp_path), "a.raw"]}}
    keys = set(re.findall(r"`(\w+)`", PAGE.partition("## The text")[2].partition("| state |")[0]))
    assert {*says, *leads[1], *(key for each in says["disks"] for key in each)} <= keys


def test_the_key_of_a_session(tmp_path: Path) -> None:
    disk = blkmig.FileBackend(tmp_path / "a.raw", create_size=1 << 20)
    keys = keyfile.KeyFile(None)
    with disk, contextlib.closing(keys):
        keys.begin([disk], keyfile.Known(bytes(range(16)), 3))
    (says,) = slots((tmp_path / ".a.raw.source.blkmig").read_bytes()).values()
    assert says == {"key": bytes(range(16)).hex(), "incarnation": 3, "sent": [["a", 1 << 20]]}
    assert {*re.findall(r"^\| `(\w+)` \|", PAGE.partition("## The key of a session")[2], re.MULTILINE)} == {*says}


def test_names(tmp_path: Path) -> None:
    """Those in a folder for all, and one that is too long."""
    digest = hashlib.sha256(b"/srv/vda.raw").hexdigest()[:16]
    where, name = sessionfile.where("/srv/vda.raw", str(tmp_path))
    assert (where, sessionfile.session_name(name)) == (tmp_path, f".vda.raw-{digest}.blkmig")
    long = "x" * 250
    cut = sessionfile.session_name(long)
    assert len(cut) == 255
    assert cut.endswith(f"-{hashlib.sha256(long.encode()).hexdigest()[:16]}.blkmig")


def test_states_are_those_of_the_page() -> None:
    table = PAGE.partition("| state | at |")[2].partition("## ")[0]
    assert {*re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)} == {*get_args(sessionwords.State)}


def test_the_example(tmp_path: Path) -> None:
    shown = PAGE.partition("```text\n")[2].partition("```")[0].splitlines()
    head = bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{2}\b", "\n".join(line[:24] for line in shown[:4]))))
    with contextlib.closing(folder.Folder(tmp_path)) as place:
        made = sessionfile.SessionFile(place, "t.raw", device="t")
        with contextlib.closing(made):
            made.begin({"state": "open", "id": "a1"})
            made.store(json.loads(shown[4]))
    assert head + shown[4].encode() in Path(made.path).read_bytes()
