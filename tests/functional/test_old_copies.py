# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of old copies, and of the targets that begin with them: names, marks, refusals, kinds of disks."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import command
import lab
import nbd_servers
import peers
import pytest

import blkmig
from blkmig import errors
from blkmig.files import copying

MIB = lab.MIB
PAGE = 4096
NEW = random.Random(1).randbytes(3 * MIB + 512)
OLD = NEW[:MIB] + bytes(PAGE) + NEW[MIB + PAGE :]


def memory(contents: bytes = NEW) -> list[blkmig.BlockBackend]:
    return [blkmig.MemoryBackend(bytearray(contents), name="d")]


def receive(tmp_path: Path, target: object, **options: Any) -> blkmig.IncomingStatistics:
    return lab.migrate(tmp_path, "unix", memory(), {"d": target}, receive=options)[1]


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True)


class Breaks(blkmig.MemoryBackend):
    """A disk of which the second MiB cannot be read, while it `is_broken`."""

    is_broken = True

    def _pread_into(self, view: memoryview, offset: int) -> None:
        if offset <= MIB < offset + view.nbytes and self.is_broken:
            raise OSError(errno.EIO, "Input/output error")
        super()._pread_into(view, offset)

    def read_block(self, blk: Any, offset: int, nbytes: int) -> bool:
        self._pread_into(memoryview(bytearray(nbytes)), offset)
        return super().read_block(blk, offset, nbytes)


@pytest.mark.parametrize("after", ["in place", "anew"])
def test_a_file_that_is_half_written_is_marked(tmp_path: Path, after: str) -> None:
    target, mark = tmp_path / "t.raw", tmp_path / ".t.raw.blkmig-partial"
    target.write_bytes(bytes(MIB) + NEW[MIB:])
    disk = Breaks(bytearray(NEW), name="d")
    with pytest.raises(errors.MigrationError, match="Input/output error"):
        lab.migrate(tmp_path, "unix", [disk], {"d": target}, receive={"in_place": True})
    (tmp_path / "socket").unlink(missing_ok=True)
    assert mark.samefile(target)
    came = receive(tmp_path, target, in_place=after == "in place")
    assert target.read_bytes() == NEW
    assert not mark.exists()
    assert (came.disks["d"].same_bytes > 0) == (after == "in place")


def test_a_file_that_was_not_written_is_not_marked(tmp_path: Path) -> None:
    target = tmp_path / "t.raw"
    target.write_bytes(OLD)
    disk = Breaks(bytearray(OLD), name="d")  # the first block is the same
    with pytest.raises(errors.MigrationError, match="Input/output error"):
        lab.migrate(tmp_path, "unix", [disk], {"d": target}, receive={"in_place": True})
    assert [*tmp_path.glob(".*")] == []
    assert target.read_bytes() == OLD


def test_a_new_file_that_is_not_complete_is_removed(tmp_path: Path) -> None:
    (tmp_path / "old.raw").write_bytes(OLD)
    with pytest.raises(errors.MigrationError, match="Input/output error"):
        lab.migrate(
            tmp_path,
            "unix",
            [Breaks(bytearray(NEW), name="d")],
            {"d": tmp_path / "t.raw"},
            receive={"delta": {"d": tmp_path / "old.raw"}},
        )
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_socket()) == ["old.raw"]


def test_of_two_receivers_the_second_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.raw").write_bytes(OLD)
    for locking in ("", ",locking=off"):
        parameters = blkmig.IncomingParameters(in_place=True)
        first = blkmig.IncomingMigration(f"unix:{tmp_path}/1", {"d": f"{tmp_path}/t.raw{locking}"}, parameters)
        second = blkmig.IncomingMigration(f"unix:{tmp_path}/2", {"d": f"{tmp_path}/t.raw{locking}"}, parameters)
        with first, pytest.raises(errors.DeviceBusy):
            second.__enter__()
    assert [*tmp_path.glob(".*")] == []


def test_an_old_copy_is_locked_and_may_not_be_in_use(tmp_path: Path) -> None:
    (tmp_path / "old.raw").write_bytes(OLD)
    with blkmig.FileBackend(tmp_path / "old.raw"), pytest.raises(errors.DeviceBusy):
        receive(tmp_path, tmp_path / "t.raw", delta={"d": tmp_path / "old.raw"})
    assert not (tmp_path / "t.raw").exists()


def test_an_overlay_as_an_old_copy(tmp_path: Path) -> None:
    """What it shows is copied, block by block."""
    (tmp_path / "base.raw").write_bytes(OLD)
    with (tmp_path / "top.raw").open("wb") as file:
        file.truncate(len(OLD))
    came = receive(tmp_path, tmp_path / "t.raw", delta={"d": f"{tmp_path}/top.raw,base={tmp_path}/base.raw"})
    assert (tmp_path / "t.raw").read_bytes() == NEW
    assert came.disks["d"].same_bytes == len(NEW) - PAGE


@pytest.mark.parametrize("options", [{"in_place": True}, {"delta": {"d": "old.raw"}}])
def test_an_empty_target_that_somebody_prepared(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "old.raw").write_bytes(OLD)
    options = {key: {"d": tmp_path / "old.raw"} if key == "delta" else value for key, value in options.items()}
    (tmp_path / "t.raw").touch()
    inode = (tmp_path / "t.raw").stat().st_ino
    receive(tmp_path, tmp_path / "t.raw", **options)
    assert (tmp_path / "t.raw").read_bytes() == NEW
    assert (tmp_path / "t.raw").stat().st_ino == inode


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "top layers": ({"in_place": True, "incremental": True}, "t", "only the top layers"),
    "no target": ({"delta": {"e": "old"}}, "new", "say where disk 'e' goes"),
    "target is there": ({"delta": {"d": "old"}}, "t", "--in-place"),
    "target is missing": ({"in_place": True}, "new", "it does not exist"),
    "old copy is missing": ({"delta": {"d": "none"}}, "new", "No such file"),
    "old copy is a QEMU's": ({"delta": {"d": "qemu:x"}}, "new", "is in use"),
    "the same file": ({"delta": {"d": "empty"}}, "empty", "same file"),
    "an image": ({"delta": {"d": "old"}}, "new.qcow2,format=qcow2", "an image cannot begin"),
    "no name": ({"delta": {1: "old"}}, "new", "must map names"),
}


@pytest.mark.parametrize(("options", "target", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], target: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").write_bytes(OLD)
    Path("t").write_bytes(OLD)
    Path("empty").touch()
    with pytest.raises(errors.MigrationError, match=why):
        blkmig.IncomingMigration("unix:s", {"d": target}, blkmig.IncomingParameters(**options)).__enter__()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "old", "t"]


def test_a_folder_is_not_written_in_place(tmp_path: Path) -> None:
    with pytest.raises(errors.ParameterError, match="and no folder"):
        blkmig.IncomingMigration("unix:s", {}, blkmig.IncomingParameters(in_place=True), into=tmp_path)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver refuses, a sender sends everything."""
    (tmp_path / "t.raw").write_bytes(NEW)
    monkeypatch.setattr("blkmig.block.can_hash", lambda: False)
    with pytest.raises(errors.ParameterError, match=r"pip install 'blkmig\[verify\]'"):
        receive(tmp_path, tmp_path / "t.raw", in_place=True)


# -- disks that are no files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_an_export_in_place(tmp_path: Path, kind: str) -> None:
    peers.require("nbdkit", "qemu-storage-daemon", "qemu-img")
    nbd_servers.require_libnbd()
    image = tmp_path / f"t.{kind}"
    (tmp_path / "old.raw").write_bytes(OLD)
    run("qemu-img", "convert", "-f", "raw", "-O", kind, tmp_path / "old.raw", image)
    with nbd_servers.storage_daemon(image, format=kind, writable=True) as server:
        came = receive(tmp_path, server.uri, in_place=True)
    run("qemu-img", "convert", "-f", kind, "-O", "raw", image, tmp_path / "came.raw")
    assert (tmp_path / "came.raw").read_bytes() == NEW
    assert came.disks["d"].same_bytes == len(NEW) - PAGE


def test_an_image_in_place(tmp_path: Path) -> None:
    peers.require("qemu-nbd", "qemu-img")
    nbd_servers.require_libnbd()
    (tmp_path / "old.raw").write_bytes(OLD)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "old.raw", tmp_path / "t.qcow2")
    came = receive(tmp_path, f"{tmp_path}/t.qcow2,format=qcow2", in_place=True)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", tmp_path / "t.qcow2", tmp_path / "came.raw")
    assert (tmp_path / "came.raw").read_bytes() == NEW
    assert came.disks["d"].same_bytes == len(NEW) - PAGE


# -- the copy ---------------------------------------------------------------------------------------------------------


def no_copy(*_: object) -> int:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize("size", [0, 1, PAGE, 5 * MIB + 1000])
def test_holes_stay_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, in_kernel: bool) -> None:
    if not in_kernel:
        monkeypatch.setattr(os, "copy_file_range", no_copy)
    contents = lab.random_disk(random.Random(size), size)
    source = lab.sparse_file(tmp_path / "s", contents)
    with source.open("rb") as one, (tmp_path / "t").open("wb+") as other:
        copying.copy_contents(one.fileno(), other.fileno(), size)
    assert (tmp_path / "t").read_bytes() == contents
    assert (tmp_path / "t").stat().st_blocks <= source.stat().st_blocks + 8


def test_an_error_of_the_copy_is_told(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"x")
    with (tmp_path / "s").open("rb") as one, (tmp_path / "s").open("rb") as other, pytest.raises(OSError, match="Bad"):
        copying.clone(one.fileno(), -1 if other.closed else 999)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "old.raw").write_bytes(OLD)
    (tmp_path / "s.raw").write_bytes(NEW)
    with command.receiver("tcp:127.0.0.1:0", "--delta", f"d={tmp_path}/old.raw", f"d={tmp_path}/t.raw") as receiver:
        sent = command.run("send", f"d={tmp_path}/s.raw", receiver.uri)
        assert receiver.finish().result["disks"]["d"]["same_bytes"] == len(NEW) - PAGE
    assert "that the target held already" in sent.stdout
    assert (tmp_path / "t.raw").read_bytes() == NEW
    with command.receiver("tcp:127.0.0.1:0", "--in-place", f"d={tmp_path}/old.raw") as receiver:
        sent = command.run("send", "--no-delta", f"d={tmp_path}/s.raw", receiver.uri)
        assert "did not compare" in str(receiver.finish().result["notes"])
    assert "--no-delta was said" in sent.stderr
    assert (tmp_path / "old.raw").read_bytes() == NEW


@pytest.mark.parametrize("text", ["old.raw", "d="])
def test_a_bad_old_copy_on_the_command_line(text: str) -> None:
    found = command.run("receive", "--delta", text, "tcp:127.0.0.1:0", "d=t.raw")
    assert found.exit_code == 2
    assert "NAME=" in found.stderr
