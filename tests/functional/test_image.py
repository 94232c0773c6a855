# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that are not raw, through the qemu-nbd that is started for them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import disks
import lab
import peers
import pytest
from processes import child_called, children_of

import blkmig
from blkmig import errors, sources
from blkmig.nbd import image, qemuimg

peers.require("qemu-nbd", "qemu-img", "qemu-io")

MiB = 1 << 20
FORMATS = ["qcow2", "vmdk", "vhdx", "vdi", "raw"]


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def make(path: Path, contents: bytes, format: str) -> Path:
    """Make an image that holds `contents`."""
    raw = path.with_suffix(".contents")
    lab.sparse_file(raw, contents)
    run("qemu-img", "convert", "-f", "raw", "-O", format, raw, path)
    return path


def contents_of(path: Path, format: str) -> bytes:
    """Return what QEMU finds in an image."""
    raw = path.with_suffix(".read")
    run("qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
    return raw.read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_read_and_write(tmp_path: Path, format: str) -> None:
    rng = random.Random(format)
    model = bytearray(disks.patchy(rng, 4 * MiB))
    path = make(tmp_path / "disk", bytes(model), format)
    with image.ImageBackend(path, format=format) as disk:
        assert disk.size == 4 * MiB
        assert disk.pread(0, disk.size) == model
        for _ in range(20):
            offset = rng.randrange(4 * MiB - 100_000)
            data = rng.randbytes(rng.randrange(100_000))
            disk.pwrite(data, offset)
            model[offset : offset + len(data)] = data
            disk.pwrite_zeroes(offset + 10, 1000)
            model[offset + 10 : offset + 1010] = bytes(1000)
        assert disk.pread(0, disk.size) == model
        disk.flush()
    assert contents_of(path, format) == model


@pytest.mark.parametrize("name", ["a,b.qcow2", "a:b.qcow2", "a b'\"$x.qcow2", "ünï.qcow2", "file:x", "-f"])
def test_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with image.ImageBackend(name, format="qcow2", create_size=MiB) as disk:
        disk.pwrite(b"here", 1000)
        disk.flush()
    with image.ImageBackend(tmp_path / name, format="qcow2", writable=False) as disk:
        assert disk.pread(1000, 4) == b"here"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_open_disk_with_format(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", b"x" * MiB, "qcow2")
    with sources.open_disk(f"{path},format=qcow2", name="vda") as disk:
        assert (disk.name, disk.size) == ("vda", MiB)
    with pytest.raises(errors.FormatError, match="format=qcow2"):
        sources.open_disk(str(path))


def test_wrong_format(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", b"x" * MiB, "qcow2")
    for format in ("vmdk", "vhdx", "qcow3"):
        with pytest.raises(errors.FormatError):
            image.ImageBackend(path, format=format)
    with pytest.raises(errors.DeviceError, match="No such file"):
        image.ImageBackend(tmp_path / "nowhere", format="qcow2")


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path, bytearray]:
    """Return a base, an image on top of it, and what both together hold."""
    rng = random.Random(9)
    contents = bytearray(rng.randbytes(4 * MiB))
    base, top = make(tmp_path / "base", bytes(contents), "qcow2"), tmp_path / "top.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {MiB} 65536", "-c", f"write -z {3 * MiB} 65536", top)
    contents[MiB : MiB + 65536] = b"\7" * 65536
    contents[3 * MiB : 3 * MiB + 65536] = bytes(65536)
    return base, top, contents


def test_allocated_in_the_top(layers: tuple[Path, Path, bytearray]) -> None:
    _, top, contents = layers
    with image.ImageBackend(top, format="qcow2", writable=False) as disk:
        assert disk.pread(0, disk.size) == contents
        assert disk.next_allocated(0, 4 * MiB) == (MiB, MiB + 65536)
        assert disk.next_allocated(MiB + 65536, 3 * MiB) == (3 * MiB, 3 * MiB + 65536)
        assert disk.next_allocated(3 * MiB + 65536, MiB) is None
        assert disk.next_data(0) == (0, 3 * MiB)


def test_base_in_another_place(layers: tuple[Path, Path, bytearray], tmp_path: Path) -> None:
    base, top, contents = layers
    moved = base.rename(tmp_path / "mo,ved")
    with pytest.raises(errors.DeviceError, match="No such file"):
        image.ImageBackend(top, format="qcow2", writable=False)
    with image.ImageBackend(top, format="qcow2", base=moved, base_format="qcow2", writable=False) as disk:
        assert disk.pread(0, disk.size) == contents
    comma = str(moved).replace(",", ",,")
    text = f"{top},format=qcow2,base={comma},base-format=qcow2"
    with sources.open_disk(text, writable=False) as disk:
        assert disk.next_allocated(0, 4 * MiB) == (MiB, MiB + 65536)


@pytest.mark.parametrize("target_format", ["qcow2"])
def test_incremental_migration(layers: tuple[Path, Path, bytearray], tmp_path: Path, target_format: str) -> None:
    """Only what the top holds travels; the target is a new image on top of a copy of the base."""
    base, top, contents = layers
    copy = tmp_path / "copy of base"
    copy.write_bytes(base.read_bytes())
    new = tmp_path / "new.qcow2"
    with (
        image.ImageBackend(top, format="qcow2", name="vda", writable=False) as source,
        image.ImageBackend(
            new, format=target_format, name="vda", base=copy, base_format="qcow2", create_size=source.size
        ) as target,
    ):
        receive = {"incremental": True, "verify": True}
        sent, _ = lab.migrate(
            tmp_path, "unix", [source], {"vda": target}, shared_base=True, digests=True, receive=receive
        )
    assert contents_of(new, target_format) == contents
    assert sent.blocks <= 2
    parts = json.loads(run("qemu-img", "map", "--output=json", "-f", "qcow2", new))
    assert sum(part["length"] for part in parts if part["depth"] == 0) <= 2 * MiB


def test_a_new_image_on_another_base_is_not_made(layers: tuple[Path, Path, bytearray], tmp_path: Path) -> None:
    """A13: what is below the target is looked at, too."""
    base, top, _ = layers
    with image.ImageBackend(base, format="qcow2", name="base") as other:
        found = other.pread(2 * MiB, 1)
        other.pwrite(bytes([found[0] ^ 1]), 2 * MiB)
    copy = tmp_path / "copy"
    copy.write_bytes(base.read_bytes())
    with image.ImageBackend(base, format="qcow2", name="base") as again:
        again.pwrite(found, 2 * MiB)
    text = f"{tmp_path}/new.qcow2,format=qcow2,base={copy},base-format=qcow2"
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"vda": text}, incremental=True, verify=True)
    with image.ImageBackend(top, format="qcow2", name="vda", writable=False) as source:
        with pytest.raises(errors.WrongBase):
            blkmig.send([source], receiver.uri, shared_base=True, digests=True)
    with pytest.raises(errors.WrongBase, match="nothing was written"):
        receiver.result()
    assert not (tmp_path / "new.qcow2").exists()


# -- migrations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "size_is_said"), [("qcow2", True), ("qcow2", False), ("vmdk", True)])
@pytest.mark.parametrize("size", [3 * 512, 66 * MiB + 512])
def test_migration_to_a_new_image(tmp_path: Path, format: str, size: int, size_is_said: bool) -> None:
    """A qcow2 image grows while its size is not known, in leaps, and has the right size at the end."""
    contents = lab.random_disk(random.Random(format), min(size, 5 * MiB)).ljust(size, b"\0")
    path = make(tmp_path / "source", contents[:-512] + b"x" * 512, "qcow2")
    receive = {"sizes": {"vda": size}} if size_is_said else {}
    with image.ImageBackend(path, format="qcow2", name="vda", writable=False) as source:
        lab.migrate(tmp_path, "tcp", [source], {"vda": f"{tmp_path}/copy,format={format}"}, receive=receive)
    assert contents_of(tmp_path / "copy", format) == contents[:-512] + b"x" * 512
    (tmp_path / "copy.read").unlink()


# -- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    return make(tmp_path / "disk.qcow2", b"x" * MiB, "qcow2")


def test_an_empty_file_becomes_an_image_and_keeps_its_mode(tmp_path: Path) -> None:
    """As one does that becomes a raw disk: it was opened as an image that it is not."""
    prepared = tmp_path / "vda.qcow2"
    prepared.touch()
    prepared.chmod(0o640)
    before = prepared.stat()
    contents = random.Random(8).randbytes(MiB + 512)
    with blkmig.MemoryBackend(bytearray(contents), name="vda") as source:
        blkmig.send([source], f"file:{tmp_path}/stream")
    blkmig.receive(f"file:{tmp_path}/stream", {"vda": f"{prepared},format=qcow2"})
    assert contents_of(prepared, "qcow2") == contents
    assert (prepared.stat().st_mode, prepared.stat().st_ino) == (before.st_mode, before.st_ino)


@pytest.mark.parametrize("writable", [True, False])
def test_image_in_use(qcow2: Path, writable: bool) -> None:
    with image.ImageBackend(qcow2, format="qcow2"), pytest.raises(errors.DeviceBusy) as caught:
        image.ImageBackend(qcow2, format="qcow2", writable=writable)
    assert caught.value.exit_code == 6
    with (
        image.ImageBackend(qcow2, format="qcow2", writable=False),
        image.ImageBackend(qcow2, format="qcow2", writable=False),
    ):
        pass
    with (
        image.ImageBackend(qcow2, format="qcow2"),
        image.ImageBackend(qcow2, format="qcow2", locking=False, writable=False),
    ):
        pass


def test_nothing_stays_behind(qcow2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    disk = image.ImageBackend(qcow2, format="qcow2")
    assert not list(tmp_path.glob("blkmig-*")), "the socket's name is not needed any more"
    server = child_called("qemu-nbd")
    disk.close()
    assert server.ends()
    disk.close()
    with pytest.raises(errors.FormatError):
        image.ImageBackend(qcow2, format="vmdk")
    assert not list(tmp_path.glob("blkmig-*"))
    image.ImageBackend(qcow2, format="qcow2").close()


def test_killed_user_leaves_no_server(qcow2: Path) -> None:
    code = (
        "import sys, signal; from blkmig.nbd import image\n"
        f"disk = image.ImageBackend({str(qcow2)!r}, format='qcow2')\n"
        "print(flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        user.stdout.readline()
        [server] = children_of(user.pid, "qemu-nbd")
        user.kill()
        assert server.ends()
    image.ImageBackend(qcow2, format="qcow2").close()


def test_server_killed(qcow2: Path) -> None:
    disk = image.ImageBackend(qcow2, format="qcow2")
    child_called("qemu-nbd").kill()
    with pytest.raises(errors.DeviceError):
        disk.pread(0, MiB)
    with pytest.raises(errors.DeviceError, match=f"ended with status -{int(signal.SIGKILL)}"):
        disk.close()
    disk.close()


def test_interrupt_is_not_for_the_server(qcow2: Path) -> None:
    with image.ImageBackend(qcow2, format="qcow2"):
        assert os.getsid(child_called("qemu-nbd").pid) != os.getsid(0)


def test_missing_program_names_the_package(qcow2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.DeviceError, match=r"qemu-nbd is not installed.*qemu-utils"):
        image.ImageBackend(qcow2, format="qcow2")
    with pytest.raises(errors.DeviceError, match=r"qemu-img is not installed.*qemu-utils"):
        qemuimg.create_image(tmp_path / "new", MiB, format="qcow2", device="vda")


def test_image_is_not_overwritten(qcow2: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.DeviceError, match="exists"):
        qemuimg.create_image(qcow2, MiB, format="qcow2", device="vda")
    with pytest.raises(errors.DeviceError, match="made"):
        qemuimg.create_image(tmp_path / "no folder" / "x", MiB, format="qcow2", device="vda")
    with pytest.raises(errors.FormatError):
        qemuimg.create_image(tmp_path / "x", MiB, format="qcow3", device="vda")
    with image.ImageBackend(qcow2, format="qcow2", create_size=5 * MiB) as disk:
        assert disk.size == MiB
        assert not disk.is_growable
        with pytest.raises(errors.DeviceError, match="fixed"):
            disk.resize(5 * MiB)


def test_new_image_is_resized(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with image.ImageBackend(path, format="qcow2", create_size=0) as disk:
        assert disk.is_growable
        assert disk.size == 0
        for size in (64 * MiB, 70 * MiB, 128 * MiB, 200 * MiB):
            disk.resize(size)
            assert disk.size == size
            disk.pwrite(b"x", size - 1)
        disk.resize(128 * MiB + 100)
        disk.flush()
        assert disk.size == 128 * MiB + 100
        assert disk.pread(70 * MiB - 1, 2) == b"x\0"
    assert json.loads(run("qemu-img", "info", "--output=json", path))["virtual-size"] == 128 * MiB + 512


def test_new_image_is_as_large_as_its_base(tmp_path: Path, qcow2: Path) -> None:
    text = f"{tmp_path}/new,format=vmdk,base={make(tmp_path / 'base', b'y' * 3 * MiB, 'vmdk')},base-format=vmdk"
    target = sources.TargetFile(text, label="vda")
    target.prepare()
    with target.open("vda", None) as disk:
        assert disk.size == 3 * MiB
        assert disk.pread(2 * MiB, 1) == b"y"
