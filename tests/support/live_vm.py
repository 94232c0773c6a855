# SPDX-License-Identifier: GPL-2.0-or-later
"""A running VM whose guest writes its disk, with a QMP socket for blkmig."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import command
import peers
import real_qemu
import storage_daemon
from real_qemu import MiB

from blkmig.files import partial

SIZE = 16 * MiB
GUEST = real_qemu.Guest(SIZE)


def require() -> None:
    """Skip the calling module where such a VM cannot be run."""
    peers.require("qemu-system-x86_64", "qemu-img")
    if not real_qemu.has_guest_tools():
        peers.lacking("an assembler for x86 (Debian: binutils)")


@contextlib.contextmanager
def sending(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command; nothing of it is left behind."""
    with storage_daemon.interruptible():
        process = command.start(*words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def guest_image(folder: Path, kind: str = "raw") -> Path:
    """Make a disk that boots the guest: raw, or qcow2 on a raw base."""
    base = folder / "guest.raw"
    with base.open("wb") as file:
        file.write(GUEST.boot_sector(folder))
        file.truncate(SIZE)
    if kind == "raw":
        return base
    top = folder / "guest.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top], check=True)
    return top


class Machine(real_qemu.Qemu):
    """A VM with the guest on virtio-blk and a QMP socket for blkmig."""

    def __init__(
        self,
        folder: Path,
        image: Path,
        name: str,
        *more: str,
        incoming: bool = False,
        iothread: bool = False,
    ) -> None:
        self.qmp_path = folder / f"{name}.qmp"
        disk_format = image.suffix.removeprefix(".")
        super().__init__(
            *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            *("-blockdev", f"file,node-name=file0,filename={image}"),
            *("-blockdev", f"{disk_format},node-name=fmt0,file=file0"),
            *("-object", "iothread,id=io0"),
            *("-device", f"virtio-blk-pci,id=vda,drive=fmt0,{'iothread=io0' if iothread else 'ioeventfd=off'}"),
            *more,
            folder=folder,
            memory="16M",
            running=True,
            incoming=incoming,
        )

    @property
    def address(self) -> str:
        return f"qemu:{self.qmp_path}"

    def wait_for_writes(self) -> None:
        """Return when the guest has begun to write, or has gone on to."""
        before = self._written()
        self.wait_until(lambda: self._written() > before, "the guest to write")

    def _written(self) -> int:
        stats = self.execute("query-blockstats")
        return int(stats[0]["stats"]["wr_operations"])

    def is_running(self) -> bool:
        return bool(self.execute("query-status")["running"])

    def leftovers(self) -> list[str]:
        """Return what is in QEMU, or beside its socket, that blkmig may have made."""
        nodes = self.execute("query-named-block-nodes", flat=True)
        found = [entry["id"] for entry in self.execute("query-block-exports")]
        found += [bitmap.get("name", "") for node in nodes for bitmap in node.get("dirty-bitmaps", ())]
        found += [entry["name"] for entry in self.execute("qom-list", path="/objects") if "blkmig-" in entry["name"]]
        beside = [path.name for path in self.qmp_path.parent.iterdir() if ".blkmig-" in path.name]
        return found + [name for name in beside if not name.endswith(partial.SUFFIX)]  # which is the receiver's

    def capabilities(self) -> set[str]:
        """Return the migration capabilities that are on."""
        return {entry["capability"] for entry in self.execute("query-migrate-capabilities") if entry["state"]}
