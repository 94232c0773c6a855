# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that a receiver makes, and what is left of them when something fails."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import command
import lab
import pauses
import peers
import pytest
from forks import in_a_child
from target_streams import CONTENT, marks
from target_streams import stream as stream

import blkmig
from blkmig import _core, errors, params, stats
from blkmig.files import folder, partial
from blkmig.migration import targets
from blkmig.nbd import qemuimg

MIB = lab.MIB


@pytest.mark.parametrize("what", ["t.raw", "t.qcow2,format=qcow2", "--into"])
def test_new_targets_are_for_this_user_only(tmp_path: Path, stream: Path, what: str) -> None:
    """C3: and so are folders; the umask may take more away."""
    peers.require("qemu-img")
    where = {"into": tmp_path / "a" / "b"} if what == "--into" else {"targets": {"v": f"{tmp_path}/{what}"}}
    old = os.umask(0)
    try:
        blkmig.receive(f"file:{stream}", **where)  # type: ignore[arg-type]
    finally:
        os.umask(old)
    made = tmp_path / ("a/b/v.raw" if what == "--into" else what.split(",")[0])
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    if what == "--into":
        assert {stat.S_IMODE(path.stat().st_mode) for path in (made.parent, made.parent.parent)} == {0o700}
    assert marks(tmp_path) == []


@pytest.mark.parametrize("fails", ["to be made", "to take files"])
def test_folders_that_are_of_no_use_are_not_left(
    tmp_path: Path, stream: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """An outer folder is made, and then what is in it is not, or cannot be used."""
    last = "b" * 300 if fails == "to be made" else "b"

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    if fails == "to take files":
        monkeypatch.setattr(folder.Folder, "check_writable", fail)
    with pytest.raises(errors.DeviceError, match="cannot be put into"):
        blkmig.receive(f"file:{stream}", into=tmp_path / "a" / last)
    assert list(tmp_path.glob("a*")) == []


def test_an_empty_file_keeps_owner_and_mode(tmp_path: Path, stream: Path) -> None:
    """C3: who prepares it says who may read it."""
    target = tmp_path / "t.raw"
    target.touch()
    target.chmod(0o640)
    before = target.stat()
    blkmig.receive(f"file:{stream}", {"v": target})
    after = target.stat()
    assert (after.st_ino, after.st_mode, after.st_nlink) == (before.st_ino, before.st_mode, 1)
    assert target.read_bytes() == CONTENT


class Failing(blkmig.MemoryBackend):
    """A second target that ends the run when its disk comes."""

    def write_block(self, *_: object) -> None:
        raise errors.DeviceError("cannot write", device="w", cause="it is a test")


@pytest.mark.parametrize("kind", ["new", "empty", "qcow2", "into"])
def test_another_disks_error_leaves_nothing(tmp_path: Path, kind: str) -> None:
    """A12: the same command works afterwards, and ends at the source's size."""
    peers.require("qemu-img")
    content = random.Random(7).randbytes(3 * MIB)
    sources = [blkmig.MemoryBackend(bytearray(content), name=name) for name in "vw"]
    blkmig.send(sources, f"file:{tmp_path}/stream")
    target, text = tmp_path / "v.raw", f"{tmp_path}/v.raw"
    if kind == "empty":
        target.touch()
    elif kind == "qcow2":
        text += ",format=qcow2"
    where = {"into": tmp_path, "targets": {}} if kind == "into" else {"targets": {"v": text}}
    failing = {**where, "targets": {**where["targets"], "w": Failing(bytearray(3 * MIB), name="w")}}  # type: ignore[dict-item]
    with pytest.raises(errors.DeviceError, match="it is a test") as caught:
        blkmig.receive(f"file:{tmp_path}/stream", **failing)  # type: ignore[arg-type]
    assert "what had come of it is removed" in "".join(caught.value.__notes__)
    assert marks(tmp_path) == []
    assert target.exists() == (kind == "empty")
    if kind == "empty":
        assert target.stat().st_size == 0
    again = {**where, "targets": {**where["targets"], "w": tmp_path / "w.raw"}}  # type: ignore[dict-item]
    blkmig.receive(f"file:{tmp_path}/stream", **again)  # type: ignore[arg-type]
    if kind != "qcow2":
        assert target.read_bytes() == content
    assert (tmp_path / "w.raw").read_bytes() == content
    assert marks(tmp_path) == []


def test_a_target_that_was_there_is_said_to_be_broken(tmp_path: Path, stream: Path) -> None:
    """A12: it is written in place, and nobody can take that back."""
    (tmp_path / "t.raw").write_bytes(bytes(len(CONTENT)))
    stream.write_bytes(stream.read_bytes()[: 3 * MIB])
    done = command.run("receive", f"file:{stream}", f"v={tmp_path}/t.raw")
    assert done.exit_code == 5
    assert f"'{tmp_path}/t.raw' holds a part of the disk" in done.stderr


def test_somebody_makes_the_target_meanwhile(tmp_path: Path) -> None:
    """A12: a new target never replaces a file, not even one that has come since."""
    source = blkmig.MemoryBackend(bytearray(CONTENT), name="v")
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"v": tmp_path / "t.raw"})
    with pytest.raises(errors.MigrationError), blkmig.outgoing([source], receiver.uri) as migration:  # noqa: PT012
        migration.iterate()
        (tmp_path / "t.raw").write_bytes(b"somebody's")
        migration.complete()
    with pytest.raises(errors.DeviceError, match="somebody else has made"):
        receiver.result()
    assert (tmp_path / "t.raw").read_bytes() == b"somebody's"
    assert marks(tmp_path) == []


def test_two_receivers_of_one_new_target(tmp_path: Path) -> None:
    """A12: the second one is told, before it listens, and takes nothing from the first."""
    first = lab.Receiver("tcp:127.0.0.1:0", {"v": tmp_path / "t.raw"})
    with pytest.raises(errors.DeviceBusy, match="another blkmig is writing"):
        lab.Receiver("tcp:127.0.0.1:0", {"v": tmp_path / "t.raw"})
    blkmig.send([blkmig.MemoryBackend(bytearray(CONTENT), name="v")], first.uri)
    first.result()
    assert (tmp_path / "t.raw").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["half", "published", "empty"])
def test_what_a_killed_receiver_left(tmp_path: Path, stream: Path, kind: str) -> None:
    """A12: known by its mark, and made again, also below --into."""
    if kind == "empty":
        (tmp_path / "v.raw").touch()

    def begin() -> None:
        left = partial.Partial(folder.Folder(tmp_path), "v.raw", device="v")
        os.pwrite(left.fd, b"old" * MIB * 4, 0)
        if kind == "published":
            left.publish()

    assert in_a_child(begin) == ""  # which ends as a kill ends it
    assert len(marks(tmp_path)) == 1
    blkmig.receive(f"file:{stream}", into=tmp_path)
    assert (tmp_path / "v.raw").read_bytes() == CONTENT
    assert marks(tmp_path) == []


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    (path.parent / "other").write_bytes(path.read_bytes())
    (path.parent / "other").rename(path)


@pytest.mark.parametrize("size", [0, len(CONTENT) - 512, len(CONTENT) + 512])
@pytest.mark.parametrize("kind", ["new", "existing", "empty", "backend"])
def test_a_target_of_another_size_at_the_end(tmp_path: Path, kind: str, size: int) -> None:
    """A8, A10: another program has cut or extended it meanwhile."""
    target = tmp_path / "t.raw"
    target.write_bytes(bytes(len(CONTENT)) if kind in ("existing", "backend") else b"")
    if kind == "new":
        target.unlink()
    text = blkmig.FileBackend(target) if kind == "backend" else target
    statistics = stats.IncomingStatistics()
    with targets.TargetSet({"v": text}, params.IncomingParameters(), statistics) as chosen:
        chosen.prepare("tcp::0")
        device = chosen.open("v", 0)
        device.settle(len(CONTENT), "stream")
        device.backend.flush()
        chosen.check_sizes()
        os.truncate(tmp_path / partial.partial_name("t.raw") if kind == "new" else target, size)
        with pytest.raises(errors.DeviceError, match="while it was written: it has"):
            chosen.publish()


@pytest.mark.parametrize("kind", ["new", "existing", "backend"])
@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_a_target_that_is_cut_and_grows_again(tmp_path: Path, kind: str, section: params.Format) -> None:
    """A8: it has the right size at the end, by the blocks that come later; what was lost are those before."""
    content = b"x" * 8 * MIB
    target = tmp_path / "t.raw"
    if kind != "new":
        target.write_bytes(bytes(len(content)))
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"v": blkmig.FileBackend(target) if kind == "backend" else target})
    cut = tmp_path / partial.partial_name("t.raw") if kind == "new" else target

    class CutsInTheMiddle(blkmig.MemoryBackend):
        """A source in whose middle the target is cut, when the blocks before have been stored."""

        def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
            if offset == 4 * MIB:
                pauses.until(lambda: cut.exists() and cut.read_bytes()[:MIB] == content[:MIB])
                os.truncate(cut, 512)
            return super().read_block(blk, offset, nbytes)

    source = CutsInTheMiddle(bytearray(content), name="v")
    with pytest.raises(errors.MigrationError):
        blkmig.send([source], receiver.uri, format=section, reading="inline", reconnect=0)
    with pytest.raises(errors.DeviceError, match=r"was cut from \d+ to \d+ bytes while it was in use"):
        receiver.result()


@pytest.mark.parametrize("change", [remove, replace])
@pytest.mark.parametrize("kind", ["new", "existing", "empty", "qcow2", "backend"])
def test_a_target_that_is_gone_at_the_end(tmp_path: Path, kind: str, change: Callable[[Path], None]) -> None:
    """A10: what was written is nowhere, and nobody says that it is complete."""
    peers.require("qemu-img")
    target = tmp_path / "t.raw"
    text: object = target
    if kind in ("existing", "backend"):
        target.write_bytes(bytes(len(CONTENT)))
        text = blkmig.FileBackend(target) if kind == "backend" else target
    elif kind == "empty":
        target.touch()
    elif kind == "qcow2":
        qemuimg.create_image(target, -(-len(CONTENT) // 512) * 512, format="qcow2", device="v")
        text = f"{target},format=qcow2"
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"v": text})
    source = blkmig.MemoryBackend(bytearray(CONTENT), name="v")
    with pytest.raises(errors.MigrationError), blkmig.outgoing([source], receiver.uri) as migration:  # noqa: PT012
        migration.iterate()
        change(tmp_path / partial.partial_name("t.raw") if kind == "new" else target)
        migration.complete()
    with pytest.raises(errors.DeviceError, match="removed or replaced") as caught:
        receiver.result()
    assert caught.value.exit_code == 1
