# SPDX-License-Identifier: GPL-2.0-or-later
"""When a running QEMU's disk is read from its image's file, when it is not, and what may not happen to that file."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import peers
import pytest
import storage_daemon
from storage_daemon import MiB, StorageDaemon

from blkmig import _core, errors, qemu
from blkmig.qemu import imagefile

peers.require("qemu-storage-daemon")

SIZE = 3 * MiB


@pytest.fixture
def folder() -> Iterator[Path]:
    with storage_daemon.private_folder() as path:
        yield path


def make_image(folder: Path, size: int = SIZE) -> Path:
    image = folder / "disk0.raw"
    image.write_bytes(b"data" * (MiB // 4) + bytes(size - MiB))
    return image


@contextlib.contextmanager
def serving(folder: Path, file_options: str = "", raw_options: str = "", size: int = SIZE) -> Iterator[StorageDaemon]:
    """Run a daemon with one raw disk, whose two nodes have these options."""
    file = f"file,node-name=file,filename={make_image(folder, size)}{file_options}"
    raw = f"raw,node-name=disk0,file=file{raw_options}"
    export = "nbd,id=w,node-name=disk0,name=disk0,writable=on"
    with StorageDaemon(folder, "--blockdev", file, "--blockdev", raw, "--export", export) as daemon:
        yield daemon


@contextlib.contextmanager
def opened(address: str) -> Iterator[qemu.QemuBackend]:
    [disk] = qemu.open_qemu(address)
    with disk:
        yield disk


def reads_as_expected(disk: qemu.QemuBackend) -> bool:
    """Return whether the second block is zeros; the first must be data."""
    blk = _core.BlockBuffer()
    assert not disk.read_block(blk, 0, MiB)
    assert bytes(blk.payload) == b"data" * (MiB // 4)
    return disk.read_block(blk, MiB, MiB)


def test_a_raw_image_is_read_from_its_file(folder: Path) -> None:
    with serving(folder) as daemon:
        with opened(daemon.address) as disk:
            assert disk.mapping is not None
            assert not disk.reads_in_parallel
            assert reads_as_expected(disk)
            assert disk.next_data(0) == (0, SIZE)
            (folder / "disk0.raw").rename(folder / "moved")  # it is the file that counts, not its name
            assert reads_as_expected(disk)
        assert daemon.leftovers() == []


@pytest.mark.parametrize("socket_path", ["link", "../{folder}/qmp"])
def test_the_monitor_by_another_name_is_the_same(folder: Path, socket_path: str) -> None:
    (folder / "link").symlink_to("qmp")
    with serving(folder) as daemon:
        path = folder / socket_path.format(folder=folder.name)
        with opened(f"qemu:{path},nbd=unix:{daemon.nbd_path}") as disk:
            assert disk.mapping is not None


@pytest.mark.parametrize(
    ("file_options", "raw_options", "size", "options"),
    [
        ("", "", SIZE, ",read=nbd"),
        (",cache.direct=on", "", SIZE, ""),
        ("", f",size={SIZE - 512}", SIZE, ""),
        ("", ",offset=0", SIZE, ""),
        ("", "", SIZE + 100, ""),  # QEMU adds zeros up to a whole sector
    ],
    ids=["on request", "past the page cache", "a part of it", "an offset of none", "not whole sectors"],
)
def test_what_is_read_by_qemu(folder: Path, file_options: str, raw_options: str, size: int, options: str) -> None:
    with serving(folder, file_options, raw_options, size) as daemon, opened(daemon.address + options) as disk:
        assert disk.mapping is None
        assert disk.reads_in_parallel
        assert reads_as_expected(disk)


def test_a_process_that_cannot_be_looked_into(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagefile, "PROC", tmp_path)
    with serving(folder) as daemon, opened(daemon.address) as disk:
        assert disk.mapping is None
        assert reads_as_expected(disk)


def test_who_started_the_daemon_may_have_its_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not the image, and descriptors that come and go."""
    users_of = imagefile.users_of
    monkeypatch.setattr(imagefile, "users_of", lambda path: [Path(f"/proc/{os.getpid()}"), *users_of(path)])
    with serving(folder) as daemon, opened(daemon.address) as disk:
        assert disk.mapping is not None


@contextlib.contextmanager
def relayed(folder: Path, target: Path) -> Iterator[Path]:
    """Pass a socket's bytes on, as ssh does for one of another machine; the QEMU behind it has not that socket."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(folder / "relay"))
        listener.listen()
        far = stack.enter_context(socket.socket(socket.AF_UNIX))

        def relay() -> None:
            near, _ = listener.accept()
            far.connect(str(target))
            with near, selectors.DefaultSelector() as selector:
                selector.register(near, selectors.EVENT_READ, far)
                selector.register(far, selectors.EVENT_READ, near)
                while True:
                    for key, _ in selector.select():
                        assert isinstance(key.fileobj, socket.socket)
                        data = key.fileobj.recv(65536)
                        if not data:
                            return
                        key.data.sendall(data)

        thread = threading.Thread(target=relay)
        thread.start()
        stack.callback(thread.join, 30)
        yield folder / "relay"


def test_a_monitor_of_another_machine(folder: Path) -> None:
    """The file of that name may be any."""
    with serving(folder) as daemon, relayed(folder, daemon.qmp_path) as relay:
        with opened(f"qemu:{relay},nbd=unix:{daemon.nbd_path}") as disk:
            assert disk.mapping is None
            assert reads_as_expected(disk)


# -- what may not happen to the file ---------------------------------------------------------------------------------


def open_past_the_cache(image: Path) -> dict[str, object]:
    return {"driver": "file", "node-name": "file", "filename": str(image), "cache": {"direct": True}}


def open_another_file(image: Path) -> dict[str, object]:
    other = image.with_name("other.raw")
    other.write_bytes(bytes(SIZE))
    return {"driver": "raw", "node-name": "disk0", "file": "other"}


@pytest.mark.parametrize("reopen", [open_past_the_cache, open_another_file])
def test_a_node_that_is_opened_again_otherwise(folder: Path, reopen: Callable[[Path], dict[str, object]]) -> None:
    with serving(folder) as daemon, opened(daemon.address) as disk:
        disk.create_dirty_bitmap(MiB)
        disk.sync_dirty()
        options, execute = reopen(folder / "disk0.raw"), disk.session.qmp.execute
        if options["driver"] == "raw":
            other = {"driver": "file", "node-name": "other", "filename": str(folder / "other.raw")}
            execute("blockdev-add", other)
        execute("blockdev-reopen", {"options": [options]})
        with pytest.raises(errors.DeviceError, match="its image has changed"):
            disk.sync_dirty()


def test_a_file_that_is_cut_is_an_error(folder: Path) -> None:
    with serving(folder) as daemon, opened(daemon.address) as disk:
        disk.create_dirty_bitmap(MiB)
        os.truncate(folder / "disk0.raw", SIZE - 4096)
        with pytest.raises(errors.DeviceError, match="cut from"):
            disk.read_block(_core.BlockBuffer(), 2 * MiB, MiB)
        with pytest.raises(errors.DeviceError, match="cut from"):
            disk.sync_dirty()


def test_a_closed_disk_is_not_read(folder: Path) -> None:
    with serving(folder) as daemon:
        with opened(daemon.address) as disk:
            pass
        assert disk.mapping is None
        with pytest.raises(errors.DeviceError):
            disk.read_block(_core.BlockBuffer(), 0, MiB)


@pytest.mark.parametrize(("kind", "expected"), [("ext4", False), ("fuse.sshfs", True), ("fuseblk", True)])
def test_a_file_system_whose_server_may_go_past_the_page_cache(tmp_path: Path, kind: str, expected: bool) -> None:
    mountinfo = f"22 1 254:0 / / rw - xfs /dev/vda rw\n36 22 98:7 / /mnt rw,noatime shared:1 - {kind} /dev/x rw\n"
    (tmp_path / "mountinfo").write_text(mountinfo)
    assert imagefile.is_on_fuse(tmp_path, os.makedev(98, 7)) is expected
    assert not imagefile.is_on_fuse(tmp_path, os.makedev(99, 7))
