# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver does not take, said once for all disks before anything is written; and why one fails later."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import lab
import pytest
from faulty import faulty_disk, is_free
from pauses import Call, disk_of, until

import blkmig
from blkmig import _core, channel, errors, savevm
from blkmig.migration import heartbeat

MIB = lab.MIB
OLD = b"old" * 1000


def disk(name: str, nblocks: int = 1) -> blkmig.MemoryBackend:
    return blkmig.MemoryBackend(bytearray(name[:1].encode() * nblocks * MIB), name=name)


def refused(
    tmp_path: Path, disks: list[Any], targets: dict[str, Any], **options: Any
) -> tuple[errors.TargetFailed, errors.MigrationError]:
    """Send disks that the receiver does not take; return what the source and the receiver say."""
    receiver = lab.Receiver(f"unix:{tmp_path}/s", targets, **options)
    migration = blkmig.outgoing(disks, receiver.uri, blkmig.MigrationParameters())
    with pytest.raises(errors.TargetFailed, match="the target does not take ") as sent, migration:
        pytest.fail("nothing may be sent to a target that refuses")
    with pytest.raises(errors.MigrationError) as came:
        receiver.result()
    assert migration.stats.format == receiver.migration.stats.format == "blkmig"
    assert all(is_free(each) for each in disks)
    assert came.value.exit_code == type(came.value).exit_code
    return sent.value, came.value


def small_file(folder: Path) -> dict[str, Any]:
    (folder / "t.raw").write_bytes(OLD)
    return {"targets": {"d": folder / "t.raw"}}


def large_file(folder: Path) -> dict[str, Any]:
    (folder / "t.raw").write_bytes(OLD * 2000)
    return {"targets": {"d": folder / "t.raw"}}


def read_only(folder: Path) -> dict[str, Any]:
    target = blkmig.MemoryBackend(bytearray(3 * MIB), name="t")
    target.is_read_only = True
    return {"targets": {"d": target}}


def busy(folder: Path) -> dict[str, Any]:
    target = blkmig.MemoryBackend(bytearray(3 * MIB), name="t")
    using = target.block_use("somebody else")
    using.__enter__()
    target.kept = using  # type: ignore[attr-defined]
    return {"targets": {"d": target}}


def unknown(folder: Path) -> dict[str, Any]:
    return {"targets": {"e": folder / "t.raw"}}


def there_already(folder: Path) -> dict[str, Any]:
    (folder / "into").mkdir()
    (folder / "into" / "d.raw").write_bytes(OLD)
    return {"targets": {}, "into": folder / "into"}


def no_place(folder: Path) -> dict[str, Any]:
    (folder / "into").mkdir()
    (folder / "into" / "d.raw").mkdir()
    return {"targets": {}, "into": folder / "into"}


def other_size(folder: Path) -> dict[str, Any]:
    return {"targets": {"d": folder / "t.raw"}, "sizes": {"d": 5 * MIB}}


REFUSALS: dict[str, tuple[Any, type[errors.MigrationError], int | None, str]] = {
    "too small": (small_file, errors.DeviceError, errno.EFBIG, "is too small"),
    "too large": (large_file, errors.DeviceError, None, "is too large"),
    "read-only": (read_only, errors.DeviceError, None, "it is read-only"),
    "busy": (busy, errors.DeviceBusy, errno.EBUSY, "already used for somebody else"),
    "unknown": (unknown, errors.UnknownDevice, errno.ENODEV, "holds a disk 'd', but targets were given for 'e'"),
    "there already": (there_already, errors.DeviceError, None, "it exists already"),
    "no place": (no_place, errors.DeviceError, None, "exists already|Is a directory|File exists"),
    "another size": (other_size, errors.ParameterError, None, "not 5242880 as was said"),
}


def listened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | savevm.Word | None]]:
    """Return what a source will hear from now on."""
    heard: list[tuple[int, int | savevm.Word | None]] = []
    read = savevm.read_message

    def listen(path: channel.InputQEMUFile) -> tuple[int, int | savevm.Word | None]:
        heard.append(read(path))
        return heard[-1]

    monkeypatch.setattr(savevm, "read_message", listen)
    return heard


def files_in(folder: Path) -> dict[str, bytes | None]:
    """Return everything below `folder` but sockets, hidden files, too."""
    found = (path for path in folder.rglob("*") if not stat.S_ISSOCK(path.stat().st_mode))
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.parametrize(("make", "kind", "code", "text"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_refused_is_told_and_unchanged(
    tmp_path: Path, make: Any, kind: type[errors.MigrationError], code: int | None, text: str
) -> None:
    options = make(tmp_path)
    before = files_in(tmp_path)
    sent, came = refused(tmp_path, [disk_of(3)], **options)
    assert isinstance(came, kind)
    assert (sent.device, sent.exit_code) == ("d", 1)
    assert sent.errno == code
    assert re.search(text, str(sent))
    assert str(sent).startswith("the target does not take disk 'd': ")
    assert files_in(tmp_path) == before
    for target in options["targets"].values():
        assert not isinstance(target, blkmig.MemoryBackend) or target.pread(0, 3 * MIB) == bytes(3 * MIB)


@pytest.mark.parametrize("name", ["a/b", "x" * 252, "..", "a\x1b[2Jb"])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    sent, came = refused(tmp_path, [disk(name)], {}, into=tmp_path / "into")
    assert isinstance(came, errors.ParameterError)
    assert "\x1b" not in str(sent)
    assert sent.device == name
    assert not (tmp_path / "into").exists()


def test_all_reasons_are_told_at_once(tmp_path: Path) -> None:
    """One message for all, at both ends; what was made for the disks that are taken is removed."""
    (tmp_path / "b.raw").write_bytes(OLD)
    targets = {"a": tmp_path / "a.raw", "b": tmp_path / "b.raw", "d": tmp_path / "new" / "d.raw"}
    (tmp_path / "new").mkdir()
    before = files_in(tmp_path)
    sent, came = refused(tmp_path, [disk("a"), disk("b"), disk("c"), disk("d")], targets)
    for said in (str(sent), "\n".join((str(came), *came.__notes__))):
        assert "disk 'b': " in said
        assert "is too small" in said
        assert "the stream holds a disk 'c', but targets were given for 'a', 'b', 'd'" in said
        assert "disk 'a': " not in said
    assert (sent.device, sent.errno) == ("b", errno.EFBIG)
    assert isinstance(came, errors.DeviceError)
    assert files_in(tmp_path) == before


def test_a_refused_disk_does_not_move_the_others_up(tmp_path: Path) -> None:
    """Targets by number: the second one stays the second's, whose size it has."""
    (tmp_path / "0.raw").write_bytes(OLD)
    (tmp_path / "1.raw").write_bytes(bytes(2 * MIB))
    by_index = {0: tmp_path / "0.raw", 1: tmp_path / "1.raw"}
    sent, _ = refused(tmp_path, [disk("a"), disk("b", 2)], {}, by_index=by_index)
    assert "disk 'a': " in str(sent)
    assert "disk 'b': " not in str(sent)


def test_a_target_of_a_disk_that_is_not_sent(tmp_path: Path) -> None:
    """Nothing is refused, and nothing is taken either."""
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw", "e": tmp_path / "e.raw"})
    with pytest.raises(errors.TargetFailed, match="no block of disk 'e'; it holds 'd'") as sent:
        blkmig.send([disk_of(2)], receiver.uri)
    assert sent.value.errno == errno.ENODATA
    with pytest.raises(errors.IncompleteMigration):
        receiver.result()
    assert files_in(tmp_path) == {}


def test_a_disk_of_no_bytes_needs_no_target(tmp_path: Path) -> None:
    disks: list[Any] = [blkmig.MemoryBackend(bytearray(), name="empty"), disk_of(2)]
    _, came = lab.migrate(tmp_path, "unix", disks, {"d": tmp_path / "t.raw"})
    assert came.format == "blkmig"
    assert [note for note in came.notes if "disk 'empty' has no bytes" in note]
    assert set(came.disks) == {"d"}


def test_very_many_disks_are_refused_in_one_reply(tmp_path: Path) -> None:
    disks: list[Any] = [blkmig.MemoryBackend(bytearray(512), name=f"é{number}" * 20) for number in range(256)]
    sent, came = refused(tmp_path, disks, {"d": tmp_path / "d.raw"})
    assert str(sent).count("disk 'é") == 256 * 1 + str(sent).count("holds a disk 'é")
    assert len(came.__notes__) >= 255


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(errors.DeviceError):
        lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "shut" / "d.raw"})


class SlowToOpen(blkmig.MemoryBackend):
    """A disk that is taken into use when the test says so."""

    def __init__(self, nbytes: int, until_told: threading.Event) -> None:
        super().__init__(bytearray(nbytes), name="d")
        self._until_told = until_told

    def block_use(self, reason: str) -> contextlib.AbstractContextManager[None]:
        assert self._until_told.wait(30)
        return super().block_use(reason)


def test_a_target_that_is_opened_for_long_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than the idle time-out, from a thread that the disk does not block."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    told = threading.Event()
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": SlowToOpen(2 * MIB, told)})
    answers = listened(monkeypatch)
    running = Call(lambda: blkmig.send([disk_of(2)], receiver.uri, idle_timeout=1.0))
    until(lambda: len(answers) > 75 or running.is_over())
    told.set()
    running.result()
    receiver.result()
    assert savevm.Alive("the target of disk 'd' is opened (1 of 1)") in [value for _, value in answers]


# -- later failures --------------------------------------------------------------------------------------------------


def test_a_write_that_fails_is_told_with_disk_and_offset(tmp_path: Path) -> None:
    """E13: the source's message says what the target's does."""
    source = blkmig.MemoryBackend(bytearray(b"x" * 40 * MIB), name="vda")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"vda": faulty_disk(bytes(40 * MIB), writes=3 * MIB)})
    with pytest.raises(errors.TargetFailed) as sent:
        blkmig.send([source], receiver.uri)
    with pytest.raises(errors.DeviceError) as came:
        receiver.result()
    assert str(came.value) in str(sent.value)
    assert (sent.value.device, sent.value.offset, sent.value.errno) == ("d", 3 * MIB, errno.ENOSPC)
    assert is_free(source)


def test_a_flush_that_fails_leaves_no_doubt(tmp_path: Path) -> None:
    """B9: READY is asked for before END leaves, so the writers go on."""
    source = disk_of(3)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": faulty_disk(bytes(3 * MIB), flushes=True)})
    with pytest.raises(errors.TargetFailed, match=r"cannot flush.*Input/output error") as sent:
        blkmig.send([source], receiver.uri, writers_after="refuse")
    assert "before the stream's end" in str(sent.value)
    assert sent.value.errno == errno.EIO
    source.pwrite(b"mine", 0)


class SlowDisk(blkmig.MemoryBackend):
    """A disk that is quick to flush while the source's writers run; then it takes until it is told."""

    def __init__(self, nbytes: int, until_told: threading.Event) -> None:
        super().__init__(bytearray(nbytes), name="d")
        self.flushes = 0
        self._until_told = until_told

    def flush(self) -> None:
        self.flushes += 1
        assert self.flushes == 1 or self._until_told.wait(30)


def test_a_target_that_flushes_for_long_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pause of a move, for longer than the idle time-out."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    told = threading.Event()
    target = SlowDisk(2 * MIB, told)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target})
    parameters = blkmig.MigrationParameters(writers_after="refuse", downtime_limit=30, idle_timeout=0.2)
    migration = blkmig.outgoing([disk_of(2)], receiver.uri, parameters)
    answers = listened(monkeypatch)

    def run() -> None:
        with migration:
            migration.run()

    running = Call(run)
    until(lambda: len(answers) > 30 or running.is_over())
    told.set()
    running.result()
    receiver.result()
    assert migration.status == "completed"
    assert target.flushes == 2, "before the pause, and in it"


def test_a_pause_that_the_target_holds_up_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: a flush takes no longer out of the writers' time than the bound of the pause; READY of it comes too late."""
    monkeypatch.setattr(blkmig.params, "MIN_DOWNTIME_BOUND", 0.1)
    told = threading.Event()
    source, target = disk_of(2), SlowDisk(2 * MIB, told)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target})
    parameters = blkmig.MigrationParameters(writers_after="refuse", downtime_limit=0.0)
    migration = blkmig.outgoing([source], receiver.uri, parameters)

    def run() -> None:
        with migration:
            migration.run()

    running = Call(run)
    until(lambda: source.is_held)
    Call(lambda: source.pwrite(b"later", 5)).result()  # the target still flushes
    told.set()
    running.result()
    receiver.result()
    assert migration.stats.pauses_given_up == 1
    assert target.pread(0, 10) == b"xxxxxlater"


@pytest.mark.parametrize("section", ["blkmig", "block"])
def test_a_move_has_little_to_flush_in_its_pause(tmp_path: Path, section: str) -> None:
    """What bulk has sent is on stable storage before the writers are held; `block` has no way to ask for that."""

    class Watched(blkmig.MemoryBackend):
        unflushed = False

        def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
            super().write_block(blk, offset, nbytes)
            self.unflushed = True

        def flush(self) -> None:
            flushed.append((self.unflushed, source.is_held))
            self.unflushed = False

    source, target = disk_of(8), Watched(bytearray(8 * MIB), name="d")
    flushed: list[tuple[bool, bool]] = []
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target})
    blkmig.send([source], receiver.uri, writers_after="refuse", format=section)
    receiver.result()
    ahead = [(True, False), (False, True)] if section == "blkmig" else [(True, True)]
    assert flushed[: len(ahead)] == ahead
