# SPDX-License-Identifier: GPL-2.0-or-later
"""Session files hold a secret only where nobody else can read them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from blkmig.files import sessionfile
from blkmig.migration import sessions

SECRET = bytes(range(64))


def stored(disk: Path) -> bytes:
    """Return the session file of `disk` when a source may ask what was decided."""
    files = sessions.SessionFiles("target", None)
    with contextlib.closing(files):
        files.begin([sessionfile.Disk(str(disk))])
        files.may_be_asked(bytes(16), 60, SECRET)
        files.store("committing", 1)
    return disk.with_name(sessionfile.session_name(disk.name)).read_bytes()


def test_what_a_token_was_made_of_is_kept(tmp_path: Path) -> None:
    assert SECRET.hex().encode() in stored(tmp_path / "t.raw")


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_but_not_in_a_file_that_others_may_open(tmp_path: Path, mode: int) -> None:
    """Who may write the folder can have made it before; it says the rest all the same."""
    there = tmp_path / sessionfile.session_name("t.raw")
    there.touch()
    there.chmod(mode)
    said = stored(tmp_path / "t.raw")
    assert SECRET.hex().encode() not in said
    assert b'"committing"' in said
    assert b'"seconds":60' in said
