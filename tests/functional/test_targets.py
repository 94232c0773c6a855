# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets: what is refused before the first byte, how new ones come to their names, what a failed run leaves."""

from __future__ import annotations

import os
import random
import resource
import signal
import stat
import subprocess
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import command
import disks
import golden_streams
import lab
import peers
import pytest

import blkmig
from blkmig import block, errors, params, stats
from blkmig.files import folder, partial
from blkmig.migration import targets
from blkmig.nbd import qemuimg

MIB = lab.MIB
CONTENT = random.Random(5).randbytes(5_000_192)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    return stream_of(tmp_path, "v", CONTENT)


def stream_of(tmp_path: Path, name: str, content: bytes, **parameters: object) -> Path:
    """Write the stream of a disk and return its path."""
    source = blkmig.MemoryBackend(bytearray(content), name=name)
    blkmig.send([source], f"file:{tmp_path}/{name[:50]}.st", **parameters)
    return tmp_path / f"{name[:50]}.st"


def marks(path: Path) -> list[Path]:
    """Return what is left of half-made targets."""
    return [file for file in path.rglob("*") if file.name.endswith(partial.SUFFIX)]


# -- which file is it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["same", "hard link", "symlink"])
def test_the_stream_is_not_the_target(tmp_path: Path, stream: Path, kind: str) -> None:
    """A4."""
    content, name = stream.read_bytes(), tmp_path / "other"
    if kind == "same":
        name = stream
    elif kind == "symlink":
        name.symlink_to(stream.name)
    else:
        os.link(stream, name)
    done = command.run("receive", f"file:{stream}", f"v={name}")
    assert (done.exit_code, stream.read_bytes()) == (2, content), done.stderr
    with pytest.raises(errors.ParameterError, match="same file"):
        blkmig.receive(f"file:{stream}", by_index={0: name})
    words = command.command("receive", "-", f"v={name}")
    with stream.open("rb") as stdin:
        piped = subprocess.run(words, stdin=stdin, capture_output=True, env=command.environment(), check=False)
    assert (piped.returncode, stream.read_bytes()) == (2, content), piped.stderr


def test_two_targets_are_two_files(tmp_path: Path, stream: Path) -> None:
    """A4: existing ones and ones that would be made, by any name, and the base of one."""
    (tmp_path / "a").write_bytes(bytes(MIB))
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "folder").symlink_to(".")
    base = f",base={tmp_path}/"
    pairs = [("a", "b"), ("new", "folder/new"), (f"a{base}b", "new"), (f"new{base}a", "a"), ("a", f"new{base}b")]
    for one, other in pairs:
        with pytest.raises(errors.ParameterError, match="same file"):
            blkmig.receive(f"file:{stream}", {"v": f"{tmp_path}/{one}", "w": f"{tmp_path}/{other}"})
    with blkmig.FileBackend(tmp_path / "a") as disk, pytest.raises(errors.ParameterError, match="same file"):
        blkmig.receive(f"file:{stream}", {"v": disk, "w": tmp_path / "b"})
    assert (tmp_path / "a").read_bytes() == bytes(MIB)
    assert not (tmp_path / "new").exists()


def test_a_loop_device_over_the_stream(tmp_path: Path, stream: Path) -> None:
    """A4."""
    with stream.open("ab") as file:
        file.write(bytes(-stream.stat().st_size % 4096))
    content = stream.read_bytes()
    with disks.loop_device(stream) as device, pytest.raises(errors.ParameterError, match="same file"):
        blkmig.receive(f"file:{stream}", {"v": device})
    assert stream.read_bytes() == content


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [True, False])
def test_a_larger_file_is_refused(tmp_path: Path, stream: Path, said: bool) -> None:
    """A8: not silently kept, and refused before anything is written."""
    target = tmp_path / "t.raw"
    target.write_bytes(b"k" * 7_000_000)
    options = [f"--size=v={len(CONTENT)}"] if said else []
    done = command.run("receive", f"file:{stream}", f"v={target}", *options)
    assert done.exit_code == 1
    assert "--keep-tail" in done.stderr
    assert target.read_bytes() == b"k" * 7_000_000
    kept = command.run("receive", f"file:{stream}", f"v={target}", "--keep-tail", *options)
    assert kept.exit_code == 0
    assert "the rest keeps what it held" in kept.stderr
    assert target.read_bytes() == CONTENT + b"k" * (7_000_000 - len(CONTENT))


def test_a_smaller_file_is_not_touched_if_the_size_was_said(tmp_path: Path, stream: Path) -> None:
    """C15."""
    (tmp_path / "t.raw").write_bytes(b"k" * MIB)
    with pytest.raises(errors.DeviceError, match="nothing was written"):
        blkmig.receive(f"file:{stream}", {"v": tmp_path / "t.raw"}, sizes={"v": len(CONTENT)})
    assert (tmp_path / "t.raw").read_bytes() == b"k" * MIB


@pytest.mark.parametrize("kind", ["file", "memory", "qcow2"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_target_that_does_not_fit_is_not_touched(tmp_path: Path, kind: str, place: int) -> None:
    """C15: a blkmig says its disks' sizes first, and of no disk a block is written before all are seen to fit."""
    if kind == "qcow2":
        peers.require("qemu-img")
    sizes = [3 * MIB + 700, 5 * MIB]
    content = [random.Random(size).randbytes(size) for size in sizes]
    sources = [blkmig.MemoryBackend(bytearray(data), name=name) for name, data in zip("ab", content, strict=True)]
    blkmig.send(sources, f"file:{tmp_path}/s")
    for has in (MIB, sizes[place] - 512, sizes[place] + 4 * MIB):
        small = b"k" * has
        made: list[blkmig.MemoryBackend | str] = [blkmig.MemoryBackend(bytearray(size), name="t") for size in sizes]
        if kind == "memory":
            made[place] = blkmig.MemoryBackend(bytearray(small), name="t")
        elif kind == "file":
            made[place] = str(tmp_path / "t")
            (tmp_path / "t").write_bytes(small)
        else:
            made[place] = f"{tmp_path}/t,format=qcow2"
            (tmp_path / "t").unlink(missing_ok=True)
            qemuimg.create_image(tmp_path / "t", has, format="qcow2", device="t")
        before = None if kind == "memory" else (tmp_path / "t").read_bytes()
        if kind == "memory" and has > sizes[place]:
            blkmig.receive(f"file:{tmp_path}/s", dict(zip("ab", made, strict=True)))  # it keeps its tail
            continue
        with pytest.raises(errors.DeviceError, match=f"and the disk {sizes[place]}, as the source says; nothing was"):
            blkmig.receive(f"file:{tmp_path}/s", dict(zip("ab", made, strict=True)))
        other = made[1 - place]
        assert isinstance(other, blkmig.MemoryBackend)
        assert other.pread(0, other.size) == bytes(other.size)
        if before is None:
            assert isinstance(made[place], blkmig.MemoryBackend)
            assert made[place].pread(0, has) == small
        else:
            assert (tmp_path / "t").read_bytes() == before


def test_a_size_that_is_not_the_sources_is_refused_at_once(tmp_path: Path, stream: Path) -> None:
    target = tmp_path / "t"
    target.write_bytes(b"k" * 9)
    with pytest.raises(errors.ParameterError, match="has 5000192 bytes, not 9 as was said; nothing was written"):
        blkmig.receive(f"file:{stream}", {"v": target}, sizes={"v": 9})
    assert target.read_bytes() == b"k" * 9


@pytest.mark.parametrize("size", [MIB, 3 * MIB])
def test_a_small_target_of_a_qemus_disk(tmp_path: Path, size: int) -> None:
    """C15: a QEMU says no sizes, so it is found when a block comes that does not fit; what is left is said."""
    golden = golden_streams.manifest()["pc-7.2"]
    [source], target = golden.disks, tmp_path / "small.raw"
    size = min(size, len(source.contents) - MIB)
    target.write_bytes(b"k" * size)
    (tmp_path / "s").write_bytes(golden.stream)
    done = command.run("receive", f"file:{tmp_path}/s", f"{source.name}={target}")
    assert done.exit_code == 1
    assert f"disk {source.name!r}: its target '{target}' has {size} bytes, and a block came that starts" in done.stderr
    is_same = target.read_bytes() == b"k" * size
    assert f"'{target}' {'is as it was' if is_same else 'holds a part of the disk'}" in done.stderr


def test_a_size_of_a_disk_that_never_comes(tmp_path: Path, stream: Path) -> None:
    """It was ignored: a slip of the pen, and the disk that it was meant for gets its size from elsewhere."""
    done = command.run("receive", f"file:{stream}", f"v={tmp_path}/t", "--size=x=10G")
    assert done.exit_code == 2
    assert "a size is said for disk 'x', and no target: targets were given for 'v'" in done.stderr
    golden = golden_streams.manifest()["pc-7.2"]
    (tmp_path / "q").write_bytes(golden.stream)
    for name, name_in_it in ((stream, None), (tmp_path / "q", golden.disks[0].name)):
        done = command.run("receive", f"file:{name}", f"--into={tmp_path}/d", "--size=x=10G")
        assert done.exit_code == 3
        held = "" if name_in_it is None else f"; it holds '{name_in_it}'"
        assert f"a size was said for disk 'x', and the stream holds none of that name{held}\n" in done.stderr
        assert not (tmp_path / "d").exists()
    done = command.run("inspect", stream, "--size=x=10G")
    assert done.exit_code == 0
    assert "a size was said for disk 'x'" in done.stderr


def test_options_that_do_nothing_are_told(tmp_path: Path, stream: Path) -> None:
    done = command.run("receive", f"file:{stream}", f"v={tmp_path}/t", "--overwrite")
    assert done.exit_code == 0
    assert "overwrite does nothing" in done.stderr
    done = command.run("send", f"v={tmp_path}/t", f"file:{tmp_path}/s", "--bandwidth=1M")
    assert done.exit_code == 2
    assert "say --max-bandwidth" in done.stderr


@pytest.mark.parametrize("who", ["stream", "option"])
def test_little_room_is_told_before_it_is_gone(
    tmp_path: Path, who: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disks of one file system are added up; holes need no room, so nothing is refused."""
    size, free = 3 * MIB, 5 * MIB
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))
    blkmig.send([blkmig.MemoryBackend(bytearray(size), name=name) for name in ("a", "b")], f"file:{tmp_path}/s")
    if who == "stream":
        blkmig.receive(f"file:{tmp_path}/s", {"a": tmp_path / "t"}, into=tmp_path / "d")
    else:
        monkeypatch.setattr(block.SaidSizes, "take", lambda *_, **__: False)  # as if an older blkmig sent it
        blkmig.receive(f"file:{tmp_path}/s", {"a": tmp_path / "t"}, into=tmp_path / "d", sizes={"": size})
    assert caplog.text.count("the disks may take 6.0 MiB of the file system of") == 1
    assert "which has 5.0 MiB free: they fit only if at least 1.0 MiB of them are zeros" in caplog.text
    caplog.clear()
    (tmp_path / "t").write_bytes(bytes(range(1, 256)) * (size // 255) + bytes(size % 255))
    blkmig.receive(f"file:{tmp_path}/s", {"a": tmp_path / "t"}, into=tmp_path / "e", sizes={"": size})
    assert not caplog.text, "what a file holds already it need not take"


def test_a_size_for_disks_of_any_name(tmp_path: Path, stream: Path) -> None:
    """A8, C15: also where the disk's name is not known before it comes."""
    for size in (MIB, 7 * MIB):
        (tmp_path / "t.raw").write_bytes(b"k" * size)
        with pytest.raises(errors.DeviceError, match="nothing was written"):
            blkmig.incoming(
                "tcp:127.0.0.1:0", {}, blkmig.IncomingParameters(sizes={"": 5 * MIB}), by_index={0: tmp_path / "t.raw"}
            ).__enter__()
        with pytest.raises(errors.DeviceError, match="nothing was written"):
            blkmig.receive(f"file:{stream}", by_index={0: tmp_path / "t.raw"}, sizes={"v": len(CONTENT)})
        assert (tmp_path / "t.raw").read_bytes() == b"k" * size


def test_an_empty_disk_arrives_as_one(tmp_path: Path) -> None:
    """C17."""
    (tmp_path / "empty").touch()
    (tmp_path / "full").write_bytes(CONTENT)
    assert command.run("send", f"e={tmp_path}/empty", f"a={tmp_path}/full", f"file:{tmp_path}/st").exit_code == 0
    done = command.run("receive", f"file:{tmp_path}/st", f"e={tmp_path}/e.raw", f"a={tmp_path}/a.raw")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "e.raw").read_bytes() == b""
    assert (tmp_path / "a.raw").read_bytes() == CONTENT
    assert command.run("receive", f"file:{tmp_path}/st", "--into", tmp_path / "d").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["a.raw", "e.raw"]


def test_a_disk_that_is_left_out_is_told_with_the_reason(tmp_path: Path) -> None:
    """A stream of an old machine type has no place for a disk without bytes."""
    (tmp_path / "empty").touch()
    (tmp_path / "a").write_bytes(b"x" * MIB)
    words = ["send", "--machine=pc-i440fx-2.2", f"e={tmp_path}/empty", f"a={tmp_path}/a", f"file:{tmp_path}/s"]
    done = command.run(*words)
    assert done.exit_code == 0
    assert "disk 'e' was not sent: it has no bytes, and " in done.stderr
    assert "0 B fit" not in done.stderr


def test_a_larger_device_is_taken_and_said(tmp_path: Path, stream: Path) -> None:
    """A8."""
    (tmp_path / "backing").write_bytes(b"k" * 6 * MIB)
    with disks.loop_device(tmp_path / "backing") as device:
        result = blkmig.receive(f"file:{stream}", {"v": device})
    assert len([note for note in result.notes if "the rest keeps what it held" in note]) == 1
    assert (tmp_path / "backing").read_bytes().startswith(CONTENT)


def test_a_larger_image_is_refused(tmp_path: Path, stream: Path) -> None:
    """A8: an image is a file, too; one of the same size in sectors fits."""
    peers.require("qemu-img")
    for size, fits in ((8 * MIB, False), (-(-len(CONTENT) // 512) * 512, True)):
        qemuimg.create_image(tmp_path / f"{size}", size, format="qcow2", device="v")
        target = {"v": f"{tmp_path}/{size},format=qcow2"}
        if fits:
            blkmig.receive(f"file:{stream}", target)
        else:
            with pytest.raises(errors.DeviceError, match="too large"):
                blkmig.receive(f"file:{stream}", target)


def test_files_may_not_be_large(tmp_path: Path) -> None:
    """C10: a target grows by what is there, where it may not grow by more."""
    stream = stream_of(tmp_path, "v", CONTENT)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, old[1]))
        blkmig.receive(f"file:{stream}", {"v": tmp_path / "t.raw"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, old[1]))
        with pytest.raises(errors.DeviceError, match="File too large"):
            blkmig.receive(f"file:{stream}", {"v": tmp_path / "u.raw"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (tmp_path / "t.raw").read_bytes() == CONTENT
    assert not (tmp_path / "u.raw").exists()


def test_images_may_not_be_large(tmp_path: Path) -> None:
    """C10: the limit does not kill qemu-nbd."""
    peers.require("qemu-nbd")
    stream = stream_of(tmp_path, "v", CONTENT)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, old[1]))
        with pytest.raises(errors.DeviceError):
            blkmig.receive(f"file:{stream}", {"v": f"{tmp_path}/u.qcow2,format=qcow2"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert marks(tmp_path) == []


# -- new targets -----------------------------------------------------------------------------------------------------


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
    place = folder.Folder(tmp_path)
    if kind == "empty":
        (tmp_path / "v.raw").touch()
    left = partial.Partial(place, "v.raw", device="v")
    os.pwrite(left.fd, b"old" * MIB * 4, 0)
    if kind == "published":
        left.publish()
    left._close()  # as a kill does
    assert len(marks(tmp_path)) == 1
    blkmig.receive(f"file:{stream}", into=tmp_path)
    assert (tmp_path / "v.raw").read_bytes() == CONTENT
    assert marks(tmp_path) == []
    place.close()


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


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_not_left_through_a_link(tmp_path: Path, stream: Path) -> None:
    """C2: nor is a file of it replaced unless that was said."""
    (tmp_path / "d").mkdir()
    (tmp_path / "outside").write_bytes(b"precious")
    for leads_to in ("../outside", "../missing"):
        (tmp_path / "d" / "v.raw").symlink_to(leads_to)
        for overwrite in (False, True):
            with pytest.raises(errors.DeviceError, match="no regular file"):
                blkmig.receive(f"file:{stream}", into=tmp_path / "d", overwrite=overwrite)
        (tmp_path / "d" / "v.raw").unlink()
    assert (tmp_path / "outside").read_bytes() == b"precious"
    assert not (tmp_path / "missing").exists()


def test_a_file_of_the_folder_is_replaced_only_if_told_so(tmp_path: Path, stream: Path) -> None:
    """C2: when the new one is complete, whatever its size was."""
    there = tmp_path / "d" / "v.raw"
    there.parent.mkdir()
    there.write_bytes(b"precious" * MIB)
    there.chmod(0o644)
    done = command.run("receive", f"file:{stream}", "--into", there.parent)
    assert (done.exit_code, there.read_bytes()) == (1, b"precious" * MIB)
    assert "--overwrite" in done.stderr
    (tmp_path / "cut").write_bytes(stream.read_bytes()[: 2 * MIB])
    assert command.run("receive", f"file:{tmp_path}/cut", "--into", there.parent, "--overwrite").exit_code == 5
    assert there.read_bytes() == b"precious" * MIB, "it is there until the new one is complete"
    with blkmig.FileBackend(there), pytest.raises(errors.DeviceBusy):
        blkmig.receive(f"file:{stream}", into=there.parent, overwrite=True)
    assert command.run("receive", f"file:{stream}", "--into", there.parent, "--overwrite").exit_code == 0
    assert there.read_bytes() == CONTENT
    assert stat.S_IMODE(there.stat().st_mode) == 0o644
    assert marks(tmp_path) == []
    named = command.run("receive", f"file:{stream}", "--into", there.parent, f"v={there}")
    assert (named.exit_code, there.read_bytes()) == (0, CONTENT)


@pytest.mark.parametrize("count", [251, 252, 255])
def test_long_names(tmp_path: Path, count: int) -> None:
    """C7: a name of 251 bytes has room for its suffix, and a mark of its own; a longer one is refused."""
    name = "n" * count
    stream = stream_of(tmp_path, name, CONTENT)
    if count == 251:
        blkmig.receive(f"file:{stream}", into=tmp_path / "d")
        assert (tmp_path / "d" / f"{name}.raw").read_bytes() == CONTENT
        return
    with pytest.raises(errors.ParameterError, match="too long"):
        blkmig.receive(f"file:{stream}", into=tmp_path / "d")
    blkmig.receive(f"file:{stream}", {name: tmp_path / name[:255]})
    assert (tmp_path / name[:255]).read_bytes() == CONTENT


def test_marks_of_long_names_differ() -> None:
    names = ["é" * 127 + end for end in "ab"]
    found = {partial.partial_name(name) for name in names}
    assert len(found) == 2
    assert all(len(os.fsencode(name)) <= 255 for name in found)


@pytest.mark.parametrize("into", ["stream.st/x", "v.st", "/proc/nothing", "x" * 300, "ok/" + "y" * 300])
def test_a_folder_that_cannot_be(tmp_path: Path, stream: Path, into: str) -> None:
    """C7, C16: one clear error, before anybody connects."""
    (tmp_path / "stream.st").touch()
    done = command.run("receive", "tcp:127.0.0.1:0", "--into", tmp_path / into, "--accept-timeout=20")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "cannot be put into" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a while")
def test_without_permission(tmp_path: Path, stream: Path) -> None:
    """C7, C16; and an empty file is made where nothing can be put beside it."""
    closed, open_file = tmp_path / "closed", tmp_path / "closed" / "empty"
    closed.mkdir()
    closed.chmod(0o755)
    open_file.touch()
    open_file.chmod(0o666)
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(path.stat().st_mode | 0o055)
    stream.chmod(0o644)
    os.seteuid(65534)
    try:
        for where in ({"into": closed}, {"into": closed / "x"}, {"targets": {"v": closed / "new"}}):
            with pytest.raises(errors.DeviceError, match="Permission denied"):
                blkmig.incoming("tcp:127.0.0.1:0", **{"targets": {}, **where}).__enter__()  # type: ignore[arg-type]
        blkmig.receive(f"file:{stream}", {"v": open_file})
    finally:
        os.seteuid(0)
    assert open_file.read_bytes() == CONTENT


# -- before somebody connects ----------------------------------------------------------------------------------------


def test_named_targets_are_looked_at_before_it_listens(tmp_path: Path) -> None:
    """C16: the folder, the device, the kind, the lock, the format, the size that it takes."""
    (tmp_path / "busy").write_bytes(bytes(MIB))
    (tmp_path / "image").write_bytes(b"QFI\xfb" + bytes(MIB))
    cases = ["missing/t.raw", "image", "new.qcow2", "new,format=vmdk", "busy"]
    with blkmig.FileBackend(tmp_path / "busy"):
        for name in cases:
            with pytest.raises(errors.MigrationError) as caught:
                blkmig.incoming("tcp:127.0.0.1:0", {"v": f"{tmp_path}/{name}"}).__enter__()
            assert caught.value.exit_code in (1, 2, 6)
    assert marks(tmp_path) == []
    for device in (f"{tmp_path}/folder/", "/dev/nonexistent", "/dev/null", "nbd+unix:///?socket=/nonexistent"):
        with pytest.raises(errors.MigrationError):
            blkmig.incoming("tcp:127.0.0.1:0", {"v": device}).__enter__()


def test_who_waits_in_vain_leaves_nothing(tmp_path: Path) -> None:
    """C16: what was made before it listened is gone with it."""
    with pytest.raises(errors.ChannelTimeout):
        blkmig.receive("tcp:127.0.0.1:0", {"v": tmp_path / "t.raw"}, accept_timeout=0.01)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.MigrationError), blkmig.incoming("tcp:nowhere.invalid:1", {"v": tmp_path / "t.raw"}):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["v="], ["--into", ""], ["--map", "0="], ["--size", "=", "v=x"], ["--size", "v=", "v=x"]]
)
def test_empty_values(tmp_path: Path, stream: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """C8."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert command.run("receive", f"file:{stream}", *words).exit_code == 2
    assert sorted(tmp_path.iterdir()) == before


def test_empty_values_of_the_library(tmp_path: Path, stream: Path) -> None:
    """C8."""
    for where in ({"targets": {"v": ""}}, {"into": ""}, {"by_index": {0: ""}}, {"targets": {"v": "a\0b"}}):
        with pytest.raises(errors.ParameterError):
            blkmig.receive(f"file:{stream}", **where)  # type: ignore[arg-type]
    with pytest.raises(errors.ParameterError):
        blkmig.send([""], f"file:{tmp_path}/x")
    for name in ("a\0b", "\ud800", "x,base="):
        with pytest.raises(errors.ParameterError):
            blkmig.send([name], f"file:{tmp_path}/x")
        with pytest.raises(errors.ParameterError):
            blkmig.receive(f"file:{stream}", {"v": name})
    for name in ("x" * 300, f"{tmp_path}/{'y' * 300}/z", f"{stream}/x"):
        with pytest.raises(errors.MigrationError):
            blkmig.send([name], f"file:{tmp_path}/x")
        with pytest.raises(errors.MigrationError):
            blkmig.receive(f"file:{stream}", {"v": name})


def test_new_targets_past_the_page_cache(tmp_path: Path, stream: Path) -> None:
    blkmig.receive(f"file:{stream}", {"v": tmp_path / "t.raw"}, direct=True)
    blkmig.receive(f"file:{stream}", into=tmp_path / "d", direct=True)
    assert (tmp_path / "t.raw").read_bytes() == (tmp_path / "d" / "v.raw").read_bytes() == CONTENT


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    old = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
        fds = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
        free = (fd for fd in range(max(fds) + count + 2) if fd not in fds)
        resource.setrlimit(resource.RLIMIT_NOFILE, (sorted(free)[count - 1] + 1, old[1]))

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, old)


def test_no_descriptors_left(tmp_path: Path, stream: Path, few_descriptors: Callable[[int], None]) -> None:
    """C7: EMFILE at any place is an error of the tree, and leaves nothing."""
    for count in range(1, 12):
        few_descriptors(count)
        try:
            blkmig.receive(f"file:{stream}", into=tmp_path / "d")
        except errors.MigrationError as error:
            said = str(error)
        else:
            break
        few_descriptors(100)
        assert "open files" in said
        assert marks(tmp_path) == []
    else:
        pytest.fail("it never worked")
    assert (tmp_path / "d" / "v.raw").read_bytes() == CONTENT


def test_a_close_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C7: EIO of close() is an error of the disk."""
    disk = blkmig.FileBackend.create(tmp_path / "t.raw", MIB)
    close, own = os.close, disk._top.fd

    def failing(fd: int) -> None:
        close(fd)
        if fd == own:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "close", failing)
    with pytest.raises(errors.DeviceError, match="Input/output error"):
        disk.close()


def test_a_limit_on_file_sizes_is_no_signal() -> None:
    """C10: the interpreter ignores it."""
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN


@pytest.mark.parametrize("target", [["--into", "/proc"], ["v=/proc/self/fd/x.raw"]])
def test_a_folder_that_takes_no_files(tmp_path: Path, target: list[str]) -> None:
    """C7: where nothing can be made, nobody else is blamed for it."""
    (tmp_path / "a.raw").write_bytes(bytes(MIB))
    assert command.run("send", f"v={tmp_path}/a.raw", f"file:{tmp_path}/s").exit_code == 0
    done = command.run("receive", f"file:{tmp_path}/s", *target)
    assert (done.exit_code, "cannot create" in done.stderr) == (1, True), done.stderr
