# SPDX-License-Identifier: GPL-2.0-or-later
"""Any number of small disks of one QEMU, to see what their number costs in a pause.

A VM whose disks nobody writes, and a storage daemon all of whose disks are written all the time.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import blkmig
from blkmig import sources

from . import jobs, processes

PROGRAM = "qemu-system-x86_64"
DAEMON = "qemu-storage-daemon"
DOWNTIME_LIMIT = 0.5
SIZE = 1 << 20
FIRMWARE = bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd".ljust(16, b"\0")  # cli; hlt; jmp: a guest that costs nothing
LUNS = 8


class Scene:
    """A QEMU with `count` disks, running until `close`, and the stream's file."""

    program = PROGRAM

    def __init__(self, folder: pathlib.Path, count: int) -> None:
        folder.mkdir()
        self.stream = folder / "stream"
        self.monitor = folder / "qmp"
        self._process = subprocess.Popen(self._command(folder, count), stdin=subprocess.DEVNULL)
        self._await_monitor()

    def _command(self, folder: pathlib.Path, count: int) -> list[str]:
        firmware = folder / "firmware"
        firmware.write_bytes(FIRMWARE)
        command = [PROGRAM, "-machine", "pc,accel=tcg", "-m", "4M", "-nodefaults", "-display", "none"]
        command += ["-bios", str(firmware), "-qmp", f"unix:{self.monitor},server=on,wait=off"]
        command += ["-device", "virtio-scsi-pci,id=bus"]
        for number in range(count):
            image = made_image(folder, number)
            command += ["-blockdev", f"raw,node-name=n{number},file.driver=file,file.filename={image}"]
            place = f"bus=bus.0,scsi-id={number // LUNS},lun={number % LUNS}"
            command += ["-device", f"scsi-hd,drive=n{number},id=disk{number},{place}"]
        return command

    @property
    def address(self) -> str:
        """How blkmig is told about it."""
        return f"qemu:{self.monitor}"

    def _await_monitor(self) -> None:
        deadline = time.monotonic() + processes.TIMEOUT
        while True:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(self.monitor))
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.program} has no monitor; its status is {self._process.poll()}")
            time.sleep(0.05)

    def pause(self) -> jobs.Figures:
        """Send all disks and return what the migration says: its pause, and the whole of it."""
        start = time.monotonic()
        with contextlib.ExitStack() as stack:
            disks = [stack.enter_context(each) for each in sources.open_disks(self.address)]
            statistics = blkmig.send(disks, f"file:{self.stream}", downtime_limit=DOWNTIME_LIMIT)
        assert statistics.downtime is not None
        return {"wall": statistics.downtime, "total": time.monotonic() - start}

    def close(self) -> None:
        """End the QEMU."""
        self._process.kill()
        self._process.wait()


class WrittenScene(Scene):
    """A storage daemon, and a program that writes 4 KiB to each of its disks, one after the other, again and again."""

    program = DAEMON

    def __init__(self, folder: pathlib.Path, count: int) -> None:
        self._server = folder / "nbd"
        super().__init__(folder, count)
        uris = [f"nbd+unix:///disk{number}?socket={self._server}" for number in range(count)]
        self._writer = subprocess.Popen([sys.executable, "-c", WRITE, *uris], stdin=subprocess.DEVNULL)

    def _command(self, folder: pathlib.Path, count: int) -> list[str]:
        command = [DAEMON, "--nbd-server", f"addr.type=unix,addr.path={self._server},max-connections=0"]
        for number in range(count):
            image = made_image(folder, number)
            command += ["--blockdev", f"raw,node-name=n{number},file.driver=file,file.filename={image}"]
            command += ["--export", f"nbd,id=e{number},node-name=n{number},name=disk{number},writable=on"]
        command += ["--chardev", f"socket,id=qmp,path={self.monitor},server=on,wait=off", "--monitor", "chardev=qmp"]
        return command

    @property
    def address(self) -> str:
        """How blkmig is told about it."""
        return f"qemu:{self.monitor},nbd=unix:{self._server}"

    def close(self) -> None:
        """End the writer, then the daemon."""
        self._writer.kill()
        self._writer.wait()
        super().close()


WRITE = """
import sys, time
from blkmig import errors
from blkmig.nbd import connection
clients = {}
while True:
    for uri in sys.argv[1:]:
        try:
            if uri not in clients:
                clients[uri] = connection.NbdConnection(uri)
            clients[uri].pwrite(b"x" * 4096, 0)
        except errors.DeviceError:  # its export is closed for the last pass
            clients.pop(uri, None)
    time.sleep(0.01)
"""


def made_image(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Make the image of a disk."""
    image = folder / f"{number}.raw"
    image.write_bytes(bytes([number % 255 + 1]) * SIZE)
    return image


@contextlib.contextmanager
def scenes(folder: pathlib.Path, counts: tuple[int, ...]) -> Iterator[dict[int, Scene]]:
    """Have a VM for each number of disks run for a ``with``: all of them at once, and all of them idle."""
    with contextlib.ExitStack() as stack:
        running = {}
        for count in counts:
            running[count] = Scene(folder / str(count), count)
            stack.callback(running[count].close)
        yield running


def pause_of_written(folder: pathlib.Path, count: int) -> jobs.Figures:
    """Return the pause of a storage daemon's `count` disks; alone, since their writer keeps a processor busy."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        scene = WrittenScene(pathlib.Path(own) / "d", count)
        try:
            return scene.pause()
        finally:
            scene.close()


def missing(program: str = PROGRAM) -> str | None:
    """Return why this cannot be run here, None if it can."""
    return None if shutil.which(program) else f"{program} not installed"
