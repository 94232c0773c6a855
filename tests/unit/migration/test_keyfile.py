# SPDX-License-Identifier: GPL-2.0-or-later
"""The key of a session beside the source's disks: who finds it, and what is no such file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import errors, savevm, testing
from blkmig.disk import identity
from blkmig.files import folder, sessionfile
from blkmig.migration import keyfile

KNOWN = keyfile.Known(bytes(range(16)), savevm.FIRST_INCARNATION)


@contextlib.contextmanager
def disks(folder: Path, *sizes: int) -> Iterator[list[blkmig.BlockBackend]]:
    with contextlib.ExitStack() as stack:
        found: list[blkmig.BlockBackend] = [blkmig.MemoryBackend(bytearray(512), name="m")]
        for number, size in enumerate(sizes):
            (folder / f"{number}.raw").write_bytes(bytes(size))
            found.append(stack.enter_context(blkmig.FileBackend(folder / f"{number}.raw", name=f"d{number}")))
        yield found


def begun(found: list[blkmig.BlockBackend], state_dir: str | None = None) -> keyfile.KeyFile:
    file = keyfile.KeyFile(state_dir)
    file.begin(found, KNOWN)
    return file


def test_each_process_has_the_next_number(tmp_path: Path) -> None:
    with disks(tmp_path, 512, 1024) as found:
        begun(found).close()
        for number in (2, 3):
            file = keyfile.KeyFile(None)
            assert file.find(found) == keyfile.Known(KNOWN.key, number)
            file.close()
        assert [path.name for path in tmp_path.glob(".*")] == [".0.raw.source.blkmig"]


def test_whoever_lives_keeps_others_out(tmp_path: Path) -> None:
    with disks(tmp_path, 512) as found:
        file = begun(found)
        with pytest.raises(errors.DeviceBusy, match="it goes on by itself, or end it"):
            keyfile.KeyFile(None).find(found)
        begun(found).remove()  # one of its own migration has none, and is none the worse for it
        file.remove()
        assert keyfile.KeyFile(None).find(found) is None
        assert not list(tmp_path.glob(".*"))


def test_other_disks_are_refused(tmp_path: Path) -> None:
    with disks(tmp_path, 512, 1024) as found:
        begun(found).close()
        for others in (found[:2], [*found, blkmig.MemoryBackend(bytearray(512), name="x")]):
            with pytest.raises(errors.ParameterError, match="had other disks"):
                keyfile.KeyFile(None).find(others)
        assert keyfile.KeyFile(None).find(found[::-1]) is not None or found[-1].files[0].path.endswith("1.raw")


def test_a_folder_for_it(tmp_path: Path) -> None:
    (state := tmp_path / "state").mkdir()
    with disks(tmp_path, 512) as found:
        begun(found, str(state)).close()
        assert len(list(state.iterdir())) == 1
        assert not list(tmp_path.glob(".*"))
        assert keyfile.KeyFile(None).find(found) is None
        file = keyfile.KeyFile(str(state))
        assert file.find(found) is not None
        file.remove()
        assert not list(state.iterdir())


def test_nothing_secret_stands_where_others_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / ".0.raw.source.blkmig"
    path.touch(0o644)
    with disks(tmp_path, 512) as found, path.open("rb") as held:
        begun(found).close()
        assert held.read() == b""
        assert not path.exists()
        begun(found).close()
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
        before = path.read_bytes()
        begun(found).close()
        assert path.read_bytes() == before  # it may be somebody else's


def test_nothing_is_left_where_files_have_no_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NTFS or exFAT: all may open what is made there."""
    opened = folder.Folder.open

    def open_for_all(place: folder.Folder, name: str, flags: int, mode: int = 0o600) -> int:
        fd = opened(place, name, flags, mode)
        os.fchmod(fd, 0o777)
        return fd

    monkeypatch.setattr(folder.Folder, "open", open_for_all)
    with disks(tmp_path, 512) as found:
        begun(found).close()
        assert [path.name for path in tmp_path.iterdir()] == ["0.raw"]


def test_without_a_place_there_is_none(tmp_path: Path) -> None:
    with disks(tmp_path) as found:
        begun(found).close()
        assert keyfile.KeyFile(None).find(found) is None
    with disks(tmp_path, 512) as found:
        begun(found, str(tmp_path / "missing")).close()
        assert keyfile.KeyFile(str(tmp_path / "missing")).find(found) is None


def test_one_for_which_there_is_no_room_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full file system, under a migration that goes well."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with disks(tmp_path, 512) as found:
        begun(found).close()
    assert not list(tmp_path.glob(".*"))


KEY = b'{"key":"%s","incarnation":%s}'


@pytest.mark.parametrize(
    "says",
    [
        *(b"", b"x" * 8192, b"x" * 100, b'{"key":5}'),
        *(KEY % (b"00", b"1"), KEY % (b"0" * 32, b"true"), KEY % (b"0" * 32, b"0")),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, says: bytes) -> None:
    with disks(tmp_path, 512) as found:
        begun(found).close()
        path = tmp_path / ".0.raw.source.blkmig"
        if says.startswith(b"{"):
            path.unlink()
            with contextlib.closing(folder.Folder(tmp_path)) as place:
                file = sessionfile.SessionFile(place, "0.raw.source", device="d")
                file.begin(json.loads(says))
                file.close()
        else:
            path.write_bytes(says)
        assert keyfile.KeyFile(None).find(found) is None


PLACE = "there is no place for the key of this session"


def test_who_has_no_place_is_told_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a device, say, or an export; a folder helps a device. What only this process has nobody else could send."""
    export = testing.FaultyDisk(blkmig.MemoryBackend(bytearray(512), name="export"))
    for found, state_dir, words in (
        ([export], None, [f"{PLACE} (no disk is a file): ", "start it again", "--resume; --state-dir DIR is a place"]),
        ([export], str(tmp_path), [f"{PLACE} (no disk is a file, device or export): ", "send with --resume"]),
        ([export], str(tmp_path / "none"), [PLACE]),
        ([blkmig.MemoryBackend(bytearray(512), name="m")], None, []),
    ):
        caplog.clear()
        begun(found, state_dir).warn()
        assert all(word in caplog.text for word in words)
        assert ("--state-dir" in caplog.text) == (bool(words) and state_dir is None)
        assert len(caplog.records) == bool(words)


@pytest.mark.parametrize("uri", [5, b"nbd://x/y", object()])
def test_a_disk_of_another_package_has_its_own_idea_of_a_uri(tmp_path: Path, uri: object) -> None:
    """It was a bare TypeError, of a move as of a copy."""
    disk = blkmig.MemoryBackend(bytearray(512), name="d")
    disk.uri = uri  # type: ignore[attr-defined]
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "copy.raw"})
    blkmig.send([disk], receiver.uri, writers_after="refuse", state_dir=tmp_path)
    receiver.result()


def test_a_folder_that_takes_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on a file system that is read-only."""
    with disks(tmp_path, 512) as found:
        begun(found).warn()
        assert not caplog.records
        found[1].files = (identity.KnownFile("/proc/version", found[1].files[0].about),)
        begun(found[1:]).warn()
    assert PLACE in caplog.text


def test_a_sender_says_it_before_it_sends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where there is a session, and once."""
    for reconnect, count in ((0, 0), (5, 1)):
        caplog.clear()
        disk = testing.FaultyDisk(blkmig.MemoryBackend(bytearray(512), name="d"))
        receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / f"{count}.raw"})
        with blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(reconnect=reconnect)) as migration:
            assert caplog.text.count(PLACE) == count
            migration.run()
        receiver.result()
        assert caplog.text.count(PLACE) == count
