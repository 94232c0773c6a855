# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks behind other programs, with any number of descriptors left, with a long TMPDIR, without the programs (C7)."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd_servers
import peers
import pytest
import storage_daemon
from descriptors import descriptors_left
from storage_daemon import MiB, StorageDaemon, image_options

from blkmig import disk, errors, sources
from blkmig.nbd import qemuimg
from blkmig.sources import serve

peers.require("qemu-storage-daemon", "qemu-nbd", "qemu-img")


@pytest.fixture
def folder() -> Iterator[Path]:
    with storage_daemon.private_folder() as path:
        yield path


Opener = Callable[[], list[disk.BlockBackend]]


@contextlib.contextmanager
def qcow2(folder: Path) -> Iterator[Opener]:
    path = folder / "v.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    yield lambda: sources.open_disks(f"{path},format=qcow2")


@contextlib.contextmanager
def nbd_export(folder: Path) -> Iterator[Opener]:
    path = folder / "v.raw"
    path.write_bytes(bytes(MiB))
    with nbd_servers.storage_daemon(path) as server:
        yield lambda: sources.open_disks(server.uri)


@contextlib.contextmanager
def live(folder: Path) -> Iterator[Opener]:
    path = folder / "v.raw"
    path.write_bytes(bytes(MiB))
    with StorageDaemon(folder, *image_options(path)) as daemon:
        yield lambda: sources.open_disks(daemon.address)
        assert daemon.leftovers() == []


@pytest.mark.parametrize("kind", [qcow2, nbd_export, live])
def test_any_number_of_descriptors_is_enough_or_too_few(
    folder: Path,
    kind: Callable[[Path], contextlib.AbstractContextManager[Opener]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is raised is an error of ours, and nothing stays open."""
    monkeypatch.setattr("sys.unraisablehook", lambda _what: None)  # asyncio complains of a loop that was not made
    with kind(folder) as opener:
        for each in opener():  # what is imported and looked up once is there now
            each.close()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers
        failed = 0
        for count in range(40):
            with contextlib.ExitStack() as stack, descriptors_left(count):
                try:
                    for each in opener():
                        stack.enter_context(each)
                except errors.MigrationError:
                    failed += 1
                else:
                    break
        else:
            pytest.fail("40 descriptors are not enough")
        assert failed
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - numbers


def test_serve_with_few_descriptors(folder: Path) -> None:
    path = folder / "v.raw"
    path.write_bytes(bytes(MiB))
    served = serve.ServedDisk("v", sources.describe(f"{path},format=raw"))
    for count in range(40):
        with contextlib.ExitStack() as stack, descriptors_left(count):
            try:
                stack.enter_context(serve.StorageDaemon([served], f"unix:{folder}/nbd"))
            except errors.MigrationError:
                continue
            break
    else:
        pytest.fail("40 descriptors are not enough")
    assert [each.name for each in folder.iterdir()] == ["v.raw"]


def test_a_long_folder_for_temporary_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = folder / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with qcow2(folder) as opener:
        for each in opener():
            each.close()
    assert not list(long.iterdir())


@pytest.mark.parametrize("length", [108, 300])
def test_a_socket_path_that_is_too_long(folder: Path, length: int) -> None:
    path = folder / "v.raw"
    path.write_bytes(bytes(MiB))
    served = serve.ServedDisk("v", sources.describe(f"{path},format=raw"))
    with pytest.raises(errors.MigrationError, match=r"too long"):
        serve.StorageDaemon([served], f"unix:{folder}/{'y' * length}")


def test_programs_that_are_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "v.raw"
    path.write_bytes(bytes(MiB))
    with qcow2(folder) as opener:
        monkeypatch.setenv("PATH", str(folder))
        with pytest.raises(errors.DeviceError, match="qemu-utils"):
            opener()
        with pytest.raises(errors.DeviceError, match="qemu-img is not installed"):
            qemuimg.create_image(folder / "new.qcow2", MiB, format="qcow2", device="v")
        served = serve.ServedDisk("v", sources.describe(f"{path},format=raw"))
        with pytest.raises(errors.DeviceError, match="qemu-storage-daemon is not installed"):
            serve.StorageDaemon([served], f"unix:{folder}/nbd")
        (folder / "qemu-nbd").write_text("no program")
        (folder / "qemu-nbd").chmod(0o700)
        with pytest.raises(errors.DeviceError, match="cannot be opened"):
            opener()
