# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage daemon's disk as a source, and what its tests share."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import storage_daemon
from storage_daemon import MiB, StorageDaemon, image_options

from blkmig import _core, qemu
from blkmig.disk import geometry

SIZE = 5 * MiB + 7 * 512


@pytest.fixture
def folder() -> Iterator[Path]:
    with storage_daemon.private_folder() as path:
        yield path


def make_image(folder: Path, kind: str, name: str = "disk0", size: int = SIZE, seed: int = 1) -> Path:
    """Make a raw image, or a qcow2 one on a raw base, with some data."""
    rng = random.Random(seed)
    base = folder / f"{name}.raw"
    with base.open("wb") as file:
        file.truncate(size)
        for _ in range(3):
            file.seek(rng.randrange(size - 70_000))
            file.write(rng.randbytes(70_000))
    if kind == "raw":
        return base
    top = folder / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 100k", top], check=True, stdout=subprocess.DEVNULL)
    return top


class Copy:
    """The slowest correct migration there is, over the contract of a disk."""

    granularity = MiB

    def __init__(self, backend: qemu.QemuBackend, target: Path, *, wrong_order: bool = False) -> None:
        self.backend = backend
        self.bitmap = backend.create_dirty_bitmap(self.granularity)
        self.geometry = geometry.BlockGeometry(backend.size)
        self.wrong_order = wrong_order
        self.between: Callable[[int], object] = lambda block: None
        self.after_round: Callable[[], None] = lambda: None
        self._blk = _core.BlockBuffer()
        self._target = target.open("wb")
        self._target.truncate(backend.size)

    def block(self, block: int) -> None:
        """Copy one block: clear, then read; in the wrong order somebody else clears, later."""
        if not self.wrong_order:
            self.bitmap.take_block(block)
        offset, nbytes = self.geometry.block_range(block)
        self.backend.read_block(self._blk, offset, nbytes)
        self._target.seek(offset)
        self._target.write(self._blk.payload[: self.geometry.clip(offset, nbytes)])
        self._target.flush()
        self.between(block)

    def bulk(self) -> None:
        """Copy all blocks that hold data."""
        for block in range(self.geometry.nblocks):
            offset, nbytes = self.geometry.block_range(block)
            data = self.backend.next_data(offset)
            if data is not None and data[0] < offset + nbytes:
                self.block(block)
        if self.wrong_order:
            self.clear_late(list(range(self.geometry.nblocks)))

    def round(self) -> None:
        """Copy what is dirty."""
        self.backend.sync_dirty()
        self.rest()

    def rest(self) -> None:
        """Copy what is known to be dirty."""
        listed = [block for block in range(self.geometry.nblocks) if self.bitmap.is_dirty(block)]
        for block in listed:
            self.block(block)
        self.after_round()
        if self.wrong_order:
            self.clear_late(listed)

    def clear_late(self, blocks: list[int]) -> None:
        """List after copying, and take what came meanwhile for copied."""
        self.backend.sync_dirty()
        for block in blocks:
            self.bitmap.take_block(block)

    def run(self, rounds: int) -> None:
        """Copy the disk, hold its writers, copy the rest."""
        self.bulk()
        for _ in range(rounds):
            self.round()
        self.backend.hold_writers()
        self.backend.sync_dirty()
        self.between, self.after_round = lambda block: None, lambda: None
        self.rest()
        self.backend.release_writers(refuse=True)
        self._target.close()


@contextlib.contextmanager
def opened(daemon: StorageDaemon, options: str = "") -> Iterator[list[qemu.QemuBackend]]:
    """Open the daemon's disks, and see to it that nothing stays behind in it."""
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(disk) for disk in qemu.open_qemu(daemon.address + options)]
        yield disks
    assert daemon.leftovers() == []


def stress(folder: Path, image: Path, seed: int, *, options: str = "", wrong_order: bool = False) -> None:
    """Copy a disk that is being written; afterwards source and target are equal."""
    target = folder / "target.raw"
    with StorageDaemon(folder, *image_options(image)) as daemon:
        size = SIZE if image.suffix == ".raw" else SIZE // 512 * 512
        uris = [(daemon.uri("disk0"), size)]
        with storage_daemon.writing(uris, seed=seed) as [writer], opened(daemon, options) as [disk]:
            copy = Copy(disk, target, wrong_order=wrong_order)
            copy.after_round = lambda: writer.wait_for_more(3)
            copy.run(rounds=3)
        assert writer.writes
        daemon.quit()
    storage_daemon.compare(image, target)


@pytest.fixture
def daemon(folder: Path) -> Iterator[StorageDaemon]:
    options = image_options(make_image(folder, "qcow2"), throttled=True, export="vol 1")
    with StorageDaemon(folder, *options) as running:
        yield running


def write(daemon: StorageDaemon, command: str, export: str = "vol 1") -> bool:
    client = storage_daemon.QemuIo(daemon.uri(export))
    try:
        return client.run(command)
    finally:
        client.close()


def daemon_exports(disk: qemu.QemuBackend) -> list[str]:
    exports = disk.session.qmp.execute("query-block-exports")
    return [entry["id"] for entry in exports if not entry["id"].startswith("blkmig")]


def limits(daemon: StorageDaemon, disk: qemu.QemuBackend | None = None) -> int:
    ask = disk.session.qmp.execute if disk else lambda command, values: daemon.ask(command, **values)
    found: int = ask("qom-get", {"path": "/objects/disk0-limit", "property": "limits"})["bps-write"]
    return found
