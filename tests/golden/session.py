# SPDX-License-Identifier: GPL-2.0-or-later
"""What a recording is made of: the source's disks, what is wanted, and a folder with a QEMU at work."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import real_qemu
from real_qemu import Qemu


@dataclasses.dataclass(frozen=True)
class Disk:
    """One disk of the source, and the options of its ``-drive``."""

    name: str
    size: int
    options: str = "if=none"
    zero_blocks: tuple[int, ...] = ()
    path: str = ""
    sent: bool = True

    @property
    def contents(self) -> bytes:
        """What is on it at the start."""
        return real_qemu.pattern(self.size, seed=self.name, holes=lambda block: block in self.zero_blocks)

    @property
    def file(self) -> str:
        """Its file name in the folder of the recording."""
        return self.path or f"{self.name}.raw"

    @property
    def arguments(self) -> list[str]:
        """The command line for it."""
        return ["-drive", f"file={self.file},format=raw,id={self.name},{self.options}"]


class Image(Disk):
    """A disk whose -drive is a qcow2 image."""

    @property
    def arguments(self) -> list[str]:
        """The command line for it."""
        return ["-drive", f"file={self.file},format=qcow2,id={self.name},{self.options}"]


class Faulty(Disk):
    """A disk that cannot be read at 20 MiB."""

    @property
    def arguments(self) -> list[str]:
        """The command line for it."""
        fault = "file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=40960"
        file = f"file.driver=blkdebug,file.image.driver=file,file.image.filename={self.file}"
        return ["-drive", f"driver=raw,id={self.name},{self.options},{file},{fault}"]


class Nameless(Disk):
    """A qcow2 disk that only -blockdev knows."""

    @property
    def arguments(self) -> list[str]:
        """The command line for it."""
        file, node = f"driver=file,node-name=file0,filename={self.file}", "driver=qcow2,node-name=node0,file=file0"
        return ["-blockdev", file, "-blockdev", node, "-device", "virtio-blk-pci,drive=node0"]


class Inline(Disk):
    """A raw disk that only -blockdev knows, in one node with its file."""

    @property
    def arguments(self) -> list[str]:
        """The command line for it."""
        node = f"driver=raw,node-name=node0,file.driver=file,file.filename={self.file}"
        return ["-blockdev", node, "-device", "virtio-blk-pci,drive=node0"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """One golden stream: what is started, what is done to it, and what a receiver must say about the result."""

    name: str
    note: str
    disks: tuple[Disk, ...] = ()
    machine: str = "pc-i440fx-7.2"
    memory: str = "4M"
    arguments: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, int] = dataclasses.field(default_factory=lambda: {"downtime-limit": 0})
    incremental: bool = False
    run: Callable[[Session], None] = lambda session: session.full()
    status: str = "completed"
    verdict: str = "complete"
    running: bool = False


class Session:
    """A recording in the making: a folder with its disks, and later a QEMU."""

    def __init__(self, recording: Recording, folder: pathlib.Path) -> None:
        """Write the disks."""
        self.recording = recording
        self.folder = folder
        self.stream = folder / "stream"
        self.vm: Qemu
        self.is_captured = True
        self.extra: dict[str, Any] = {}
        for disk in recording.disks:
            if not disk.path.endswith(".qcow2"):
                real_qemu.create_raw(folder / disk.file, disk.contents)

    def start(self, *arguments: str) -> Qemu:
        """Start QEMU in the folder, with the capabilities and parameters of the recording."""
        rec = self.recording
        every = [argument for disk in rec.disks for argument in disk.arguments]
        self.vm = Qemu(
            *every,
            *rec.arguments,
            *arguments,
            folder=self.folder,
            machine=rec.machine,
            memory=rec.memory,
            running=rec.running,
        )
        self.vm.set_capabilities(**dict.fromkeys(rec.capabilities, True))
        self.vm.set_parameters(**rec.parameters)
        return self.vm

    def migrate(self) -> None:
        """Start the migration into the file."""
        self.vm.migrate(real_qemu.capture(self.stream), inc=self.recording.incremental)

    def full(self) -> None:
        """Migrate from start to end."""
        with self.start() as vm:
            self.migrate()
            self.end(vm)

    def end(self, vm: Qemu) -> None:
        """Wait for the end that the recording wants."""
        status = vm.wait_migration()
        if status != self.recording.status:
            raise AssertionError(f"{self.recording.name}: {status}, {vm.log}")
        if self.is_captured:
            real_qemu.captured(vm, self.stream)
        if status == "completed":
            vm.quit()  # else QEMU may still be cleaning up, and then it aborts

    def wait_stream(self, nbytes: int) -> None:
        """Wait until the file holds `nbytes` of the stream."""
        self.vm.wait_until(lambda: self.stream.exists() and self.stream.stat().st_size >= nbytes, f"{nbytes} bytes")
