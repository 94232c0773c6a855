# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders for the disks of a stream, names, permissions and limits."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import command
import lab
import pytest
from target_streams import CONTENT, marks, stream_of
from target_streams import stream as stream

import blkmig
from blkmig import errors
from blkmig.files import partial

MIB = lab.MIB


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


@contextlib.contextmanager
def as_somebody_else(*paths: Path) -> Iterator[None]:
    """What is on the way to `paths` is open to that user."""
    for path in paths:
        for above in path.parents[:-2]:
            above.chmod(above.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a while")
def test_an_empty_file_of_somebody_else_in_a_folder_like_tmp(tmp_path: Path, stream: Path) -> None:
    """No mark is put beside it, which nobody but its owner could remove again."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    target = shared / "empty"
    target.touch()
    target.chmod(0o666)
    stream.chmod(0o644)
    with as_somebody_else(target, stream):
        blkmig.receive(f"file:{stream}", {"v": target})
    assert target.read_bytes() == CONTENT
    assert [path.name for path in shared.iterdir()] == ["empty"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a while")
def test_a_file_that_may_not_be_replaced_leaves_nothing(tmp_path: Path, stream: Path) -> None:
    """The folder is ours, and the file in it belongs to somebody else, or is in use."""
    ours = tmp_path / "ours"
    ours.mkdir()
    target = ours / "v.raw"
    target.write_bytes(b"as it was")
    target.chmod(0o600)
    os.chown(ours, 65534, 65534)
    stream.chmod(0o644)
    with as_somebody_else(target, stream), pytest.raises(errors.DeviceError, match="Permission denied"):
        blkmig.receive(f"file:{stream}", into=ours, overwrite=True)
    with blkmig.FileBackend(target, name="v"), pytest.raises(errors.DeviceBusy):
        blkmig.receive(f"file:{stream}", into=ours, overwrite=True)
    assert target.read_bytes() == b"as it was"
    assert [path.name for path in ours.iterdir()] == ["v.raw"]


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
    close, own = os.close, (tmp_path / "t.raw").stat()

    def failing(fd: int) -> None:
        is_own = os.path.samestat(os.fstat(fd), own)
        close(fd)
        if is_own:
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
