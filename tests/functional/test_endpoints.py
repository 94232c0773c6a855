# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs are never outputs, and sources that somebody changes are never called verified."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import command
import disks
import lab
import peers
import pytest
import storage_daemon

import blkmig
from blkmig import errors, stats
from blkmig.files import partial

MIB = lab.MIB
CONTENT = random.Random(4).randbytes(5_000_192)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.raw"
    path.write_bytes(CONTENT)
    return path


def other_name(kind: str, path: Path) -> Path:
    """Return another name for the file at `path`."""
    name = path.parent / f"other.{kind}"
    if kind == "same":
        return path
    if kind == "hard link":
        os.link(path, name)
    elif kind == "symlink":
        name.symlink_to(path.name)
    return name


@pytest.mark.parametrize("kind", ["same", "hard link", "symlink"])
def test_the_source_is_not_the_stream(source: Path, kind: str) -> None:
    """A4: a file is told by device and inode, before it is opened for writing."""
    name = other_name(kind, source)
    done = command.run("send", f"v={source}", f"file:{name}")
    assert done.exit_code == 2
    assert "would be written over it" in done.stderr
    assert source.read_bytes() == CONTENT
    with pytest.raises(errors.ParameterError):
        blkmig.send([source], f"file:{name},offset=512")
    with blkmig.FileBackend(source) as disk, pytest.raises(errors.ParameterError):
        blkmig.outgoing([disk], f"file:{name}").__enter__()
    assert source.read_bytes() == CONTENT


def test_the_base_is_not_the_stream(tmp_path: Path, source: Path) -> None:
    """A4: what a disk is read from, too, is an input."""
    (tmp_path / "top.raw").touch()
    os.truncate(tmp_path / "top.raw", len(CONTENT))
    done = command.run("send", f"v={tmp_path}/top.raw,base={source}", f"file:{source}")
    assert (done.exit_code, source.read_bytes()) == (2, CONTENT)


def backed_images(tmp_path: Path, source: Path) -> tuple[Path, Path]:
    """Return an image that stands on one that stands on `source`; only the images themselves say so."""
    peers.require("qemu-img", "qemu-nbd")
    below = ("raw", source)
    for name in ("middle.qcow2", "top.qcow2"):
        arguments = ["-f", "qcow2", "-F", below[0], "-b", str(below[1]), str(tmp_path / name)]
        subprocess.run(["qemu-img", "create", "-q", *arguments], check=True)
        below = ("qcow2", tmp_path / name)
    return tmp_path / "middle.qcow2", tmp_path / "top.qcow2"


def test_backing_files_are_not_the_stream(tmp_path: Path, source: Path) -> None:
    """A4: what an image names as its backing file is an input, too, at any depth."""
    middle, top = backed_images(tmp_path, source)
    for below in (source, middle):
        before = below.read_bytes()
        done = command.run("send", f"v={top},format=qcow2", f"file:{below}")
        assert (done.exit_code, below.read_bytes()) == (2, before), done.stderr


@pytest.mark.parametrize("is_absolute", [True, False], ids=["absolute", "relative"])
def test_what_a_qemus_disk_stands_on_is_not_the_stream(
    tmp_path: Path, source: Path, is_absolute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4: a running QEMU names the files of the whole chain; relative names are those of its own folder."""
    peers.require("qemu-storage-daemon")
    middle, top = backed_images(tmp_path, source)
    name = str(top) if is_absolute else top.name
    options = f"driver=qcow2,node-name=vda,file.driver=file,file.filename={name}"
    monkeypatch.chdir(tmp_path)
    with storage_daemon.StorageDaemon(tmp_path, "--blockdev", options) as daemon:
        monkeypatch.chdir("/")
        for below in (top, middle, source):
            before = below.read_bytes()
            done = command.run("send", daemon.address, f"file:{below}")
            assert (done.exit_code, below.read_bytes() == before) == (2, True), done.stderr
            assert "would be written over it" in done.stderr


def test_backing_files_are_not_targets(tmp_path: Path, source: Path) -> None:
    """A4: one target's backing file is not another target, in whatever order they are said."""
    _, top = backed_images(tmp_path, source)
    stream = f"file:{tmp_path}/two.st"
    assert command.run("send", f"v={source}", f"w={source}", stream).exit_code == 0
    targets = [f"v={top},format=qcow2", f"w={source}"]
    for order in (targets, targets[::-1]):
        done = command.run("receive", stream, *order)
        assert (done.exit_code, source.read_bytes()) == (2, CONTENT), done.stderr
        assert "the same file" in done.stderr


def test_redirected_standard_output(source: Path) -> None:
    """A4: the shell has opened the disk, for appending."""
    with source.open("ab") as output:
        words = command.command("send", "--progress=none", f"v={source}", "-")
        done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, env=command.environment(), check=False)
    assert done.returncode == 2, done.stderr
    assert source.read_bytes() == CONTENT
    fd = os.open(source, os.O_RDWR)
    try:
        with pytest.raises(errors.ParameterError):
            blkmig.send([source], f"fd:{fd}")
    finally:
        os.close(fd)


def test_standard_output_to_a_file(tmp_path: Path, source: Path) -> None:
    """A4, A10: another file is none of the disk's, also if it has no name any more."""
    for remove in (False, True):
        with (tmp_path / "out").open("wb") as output:
            if remove:
                (tmp_path / "out").unlink()
            words = command.command("send", "--progress=none", f"v={source}", "-")
            done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, env=command.environment(), check=False)
        assert done.returncode == 0, done.stderr
        if not remove:
            blkmig.receive(f"file:{tmp_path}/out", {"v": tmp_path / "copy"})
            assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("command_line", ["send v=SOURCE file:OUT", "receive file:STREAM v=SOURCE"])
def test_results_do_not_go_into_the_disk(tmp_path: Path, source: Path, command_line: str) -> None:
    """A4: what is said is written, too."""
    blkmig.send([source], f"file:{tmp_path}/stream")
    names = {"SOURCE": str(source), "OUT": f"{tmp_path}/out", "STREAM": f"{tmp_path}/stream"}
    for name, value in names.items():
        command_line = command_line.replace(name, value)
    words = command.command(*command_line.split())
    with source.open("ab") as output:
        done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, env=command.environment(), check=False)
    assert done.returncode == 2
    assert b"standard output" in done.stderr
    assert source.read_bytes() == CONTENT
    assert not (tmp_path / "out").exists()


def test_a_loop_device_over_the_source(source: Path) -> None:
    """A4: another device, the same bytes."""
    with disks.loop_device(source) as device:
        with pytest.raises(errors.ParameterError):
            blkmig.send([source], f"file:{device}")
    assert source.read_bytes() == CONTENT


def test_two_sources_may_be_one_file(tmp_path: Path, source: Path) -> None:
    """Both only read it."""
    blkmig.send([blkmig.open_disk(source, name=name, writable=False) for name in "ab"], f"file:{tmp_path}/stream")
    blkmig.receive(f"file:{tmp_path}/stream", {name: tmp_path / name for name in "ab"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT


def grow(path: Path) -> None:
    os.truncate(path, len(CONTENT) + 1)


def write(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"!")


def replace(path: Path) -> None:
    (path.parent / "new").write_bytes(b"")
    (path.parent / "new").rename(path)


def send_while(
    source: Path, uri: str, change: Callable[[Path], None], **parameters: object
) -> stats.OutgoingStatistics:
    """Send `source` and change it before the last pass."""
    with blkmig.open_disk(source, name="v", writable=False) as disk:
        with blkmig.outgoing([disk], uri, blkmig.MigrationParameters(**parameters)) as migration:  # type: ignore[arg-type]
            migration.iterate()
            change(source)
            migration.complete()
            return migration.stats


@pytest.mark.parametrize("change", [grow, write, replace, Path.unlink])
def test_a_source_that_changes_is_never_verified(tmp_path: Path, source: Path, change: Callable[[Path], None]) -> None:
    """A11, A10: nobody tracks it, so nobody can say what was sent; neither end calls it complete."""
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"v": tmp_path / "copy.raw"}, verify=True)
    with pytest.raises(errors.ContentMismatch, match=r"while it was sent, so the copy cannot be verified"):
        send_while(source, receiver.uri, change, digests=True)
    with pytest.raises(errors.MigrationError):
        receiver.result()


@pytest.mark.parametrize("change", [grow, write, replace, Path.unlink])
def test_a_source_that_changes_is_said(tmp_path: Path, source: Path, change: Callable[[Path], None]) -> None:
    """A11, A10: without --verify it is a note."""
    sent = send_while(source, f"file:{tmp_path}/stream", change)
    [note] = sent.notes
    assert str(source) in note
    assert note.endswith("while it was sent")


def test_reading_changes_nothing(tmp_path: Path, source: Path) -> None:
    """A11: access times, our locks, O_DIRECT and writes that we track are no changes."""

    def read(path: Path) -> None:
        path.read_bytes()
        blkmig.open_disk(path, writable=False, direct=True).close()

    assert send_while(source, f"file:{tmp_path}/stream", read, digests=True).notes == []
    with blkmig.FileBackend(source) as disk, blkmig.outgoing([disk], f"file:{tmp_path}/stream") as migration:
        migration.iterate()
        disk.pwrite(b"!", 0)
        migration.complete()
        assert migration.stats.notes == []


@pytest.mark.parametrize("change", [replace, Path.unlink])
def test_a_stream_file_that_is_gone(tmp_path: Path, source: Path, change: Callable[[Path], None]) -> None:
    """A10: what was written is nowhere."""
    with pytest.raises(errors.MigrationError, match="removed or replaced") as caught:
        send_while(source, f"file:{tmp_path}/stream", lambda _: change(tmp_path / partial.partial_name("stream")))
    assert caught.value.exit_code == 1


# -- the hidden name of what is made ---------------------------------------------------------------------------------


@pytest.fixture
def stream(tmp_path: Path, source: Path) -> Path:
    blkmig.send([blkmig.open_disk(source, name="v", writable=False)], f"file:{tmp_path}/good.st")
    return tmp_path / "good.st"


@pytest.mark.parametrize("kind", ["same", "hard link", "symlink"])
def test_the_source_has_the_hidden_name_of_the_stream(tmp_path: Path, source: Path, kind: str) -> None:
    """A4: what an earlier run has left is removed, and no disk is that."""
    mark = source.rename(tmp_path / partial.partial_name("x.st"))
    done = command.run("send", f"v={other_name(kind, mark)}", f"file:{tmp_path}/x.st")
    assert (done.exit_code, mark.read_bytes()) == (2, CONTENT), done.stderr
    assert "is made under the name" in done.stderr
    assert not (tmp_path / "x.st").exists()


@pytest.mark.parametrize("target", ["v=b.raw", "b.raw", "--map=0=b.raw", "v=link", "--into=d"])
@pytest.mark.parametrize("is_stdin", [False, True])
def test_the_stream_has_the_hidden_name_of_a_target(
    tmp_path: Path, stream: Path, target: str, is_stdin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4: also if it is found only when the disk comes, or is read as standard input."""
    monkeypatch.chdir(tmp_path)
    content = stream.read_bytes()
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("b.raw")
    mark = Path("d", partial.partial_name("v.raw")) if "into" in target else Path(partial.partial_name("b.raw"))
    stream.rename(mark)
    words = command.command("receive", "-" if is_stdin else f"file:{mark}", target, "--progress=none")
    with mark.open("rb") as stdin:
        done = subprocess.run(words, stdin=stdin, capture_output=True, env=command.environment(), check=False)
    assert (done.returncode, mark.read_bytes() == content) == (2, True), done.stderr
    assert b"is made under the name" in done.stderr
    assert not Path("b.raw").exists()
    assert not Path("d", "v.raw").exists()


@pytest.mark.parametrize("line", ["v=b.raw w=MARK", "w=MARK v=b.raw", "v=b.raw,base=MARK", "v=b.raw 1>>MARK"])
def test_a_target_or_a_result_has_the_hidden_name_of_a_target(
    tmp_path: Path, source: Path, stream: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4: so two files would be one, or what was shown would be gone."""
    monkeypatch.chdir(tmp_path)
    mark = source.rename(tmp_path / partial.partial_name("b.raw"))
    words, _, redirected = line.replace("MARK", mark.name).partition(" 1>>")
    with open(redirected or os.devnull, "ab") as stdout:  # noqa: PTH123 - two kinds of names
        done = subprocess.run(
            command.command("receive", f"file:{stream}", *words.split()),
            stdout=stdout, stderr=subprocess.PIPE, env=command.environment(), check=False,
        )  # fmt: skip
    assert (done.returncode, mark.read_bytes()) == (2, CONTENT), done.stderr
    # A target is refused for its name alone, whatever the other targets are.
    assert (b"is that of what blkmig makes" if " w=" in f" {line}" else b"is made under the name") in done.stderr
    assert not Path("b.raw").exists()


def test_what_an_earlier_run_has_left_is_no_input(tmp_path: Path, source: Path) -> None:
    """What is half made is still replaced, and with it what was made in the place of an empty file."""
    for name in ("x.st", "b.raw"):
        (tmp_path / partial.partial_name(name)).write_bytes(b"half")
    (tmp_path / "b.raw").hardlink_to(tmp_path / partial.partial_name("b.raw"))
    blkmig.send([blkmig.open_disk(source, name="v", writable=False)], f"file:{tmp_path}/x.st")
    blkmig.receive(f"file:{tmp_path}/x.st", {"v": tmp_path / "b.raw"})
    assert (tmp_path / "b.raw").read_bytes() == CONTENT


@pytest.mark.parametrize("second", [(0, MIB), (MIB // 2, MIB + MIB // 2), (MIB - 1, 2 * MIB - 1), (MIB, 2 * MIB)])
def test_two_targets_in_one_memory(tmp_path: Path, second: tuple[int, int]) -> None:
    """A4: what came last was all that was there, with success."""
    contents = {name: random.Random(name).randbytes(MIB) for name in "ab"}
    sources = [blkmig.MemoryBackend(bytearray(each), name=name) for name, each in contents.items()]
    blkmig.send(sources, f"file:{tmp_path}/s")
    memory = bytearray(2 * MIB)
    targets = {
        name: blkmig.MemoryBackend(memoryview(memory)[slice(*part)], name=name)
        for name, part in {"a": (0, MIB), "b": second}.items()
    }
    if second[0] == MIB:
        blkmig.receive(f"file:{tmp_path}/s", targets)
        assert memory == contents["a"] + contents["b"]
        return
    with pytest.raises(errors.ParameterError, match="disk 'b' and disk 'a' are in the same memory"):
        blkmig.receive(f"file:{tmp_path}/s", targets)
    assert memory == bytes(2 * MIB)
