# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets: what is refused before the first byte, how new ones come to their names, what a failed run leaves."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import types
from pathlib import Path

import command
import disks
import golden_streams
import lab
import peers
import pytest
from target_streams import CONTENT, marks, stream_of
from target_streams import stream as stream

import blkmig
from blkmig import block, errors
from blkmig.nbd import qemuimg

MIB = lab.MIB


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
    (tmp_path / "s").unlink()
    done = command.run(*words[:3], words[-1])
    assert (done.exit_code, (tmp_path / "s").exists()) == (2, False)
    assert "there is nothing to send: disk 'e': it has no bytes, and " in done.stderr


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
