# SPDX-License-Identifier: GPL-2.0-or-later
"""A running VM with any number of small disks that nobody writes, to see what the number of disks costs in a pause."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import blkmig
from blkmig import sources

from . import jobs, processes

PROGRAM = "qemu-system-x86_64"
SIZE = 1 << 20
FIRMWARE = bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd".ljust(16, b"\0")  # cli; hlt; jmp: a guest that costs nothing
LUNS = 8


class Scene:
    """A VM with `count` disks, running until `close`, and the stream's file."""

    def __init__(self, folder: pathlib.Path, count: int) -> None:
        folder.mkdir()
        self.stream = folder / "stream"
        self.monitor = folder / "qmp"
        firmware = folder / "firmware"
        firmware.write_bytes(FIRMWARE)
        command = [PROGRAM, "-machine", "pc,accel=tcg", "-m", "4M", "-nodefaults", "-display", "none"]
        command += ["-bios", str(firmware), "-qmp", f"unix:{self.monitor},server=on,wait=off"]
        command += ["-device", "virtio-scsi-pci,id=bus"]
        for number in range(count):
            image = folder / f"{number}.raw"
            image.write_bytes(bytes([number % 255 + 1]) * SIZE)
            command += ["-blockdev", f"raw,node-name=n{number},file.driver=file,file.filename={image}"]
            place = f"bus=bus.0,scsi-id={number // LUNS},lun={number % LUNS}"
            command += ["-device", f"scsi-hd,drive=n{number},id=disk{number},{place}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._await_monitor()

    def _await_monitor(self) -> None:
        deadline = time.monotonic() + processes.TIMEOUT
        while True:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(self.monitor))
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{PROGRAM} has no monitor; its status is {self._process.poll()}")
            time.sleep(0.05)

    def pause(self) -> jobs.Figures:
        """Send all disks and return what the migration says: its pause, and the whole of it."""
        start = time.monotonic()
        with contextlib.ExitStack() as stack:
            disks = [stack.enter_context(each) for each in sources.open_disks(f"qemu:{self.monitor}")]
            statistics = blkmig.send(disks, f"file:{self.stream}", downtime_limit=0.05)
        assert statistics.downtime is not None
        return {"wall": statistics.downtime, "total": time.monotonic() - start}

    def close(self) -> None:
        """End the VM."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def scenes(folder: pathlib.Path, counts: tuple[int, ...]) -> Iterator[dict[int, Scene]]:
    """Have a VM for each number of disks run for a ``with``: all of them at once, and all of them idle."""
    with contextlib.ExitStack() as stack:
        running = {}
        for count in counts:
            running[count] = Scene(folder / str(count), count)
            stack.callback(running[count].close)
        yield running


def missing() -> str | None:
    """Return why this cannot be run here, None if it can."""
    return None if shutil.which(PROGRAM) else f"{PROGRAM} not installed"
