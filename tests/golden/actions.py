# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done to a source while it is recorded; the default is :meth:`session.Session.full`."""

from __future__ import annotations

import dataclasses
import socket
import threading

import real_qemu
from real_qemu import MiB
from session import Session

IDLE = 0.5
"""Seconds of silence after which a source that waits for SHUT is taken to have said everything."""


def write_while_migrating(session: Session) -> None:
    """A boot sector writes to the first disk; only after several rounds may the migration end."""
    disk = session.recording.disks[0]
    guest = real_qemu.Guest(disk.size)
    path = session.folder / disk.file
    real_qemu.create_raw(path, guest.boot_sector(session.folder) + bytes(disk.size - 512))

    with session.start() as vm:
        vm.wait_until(lambda: guest.written(path) > 0, "the guest to boot")
        session.migrate()
        session.wait_stream(sum(disk.size for disk in session.recording.disks) + 6 * MiB)
        vm.set_parameters(downtime_limit=100_000)
        session.end(vm)
    session.extra["guest_writes"] = guest.check(path.read_bytes())


def dirty_memory(session: Session) -> None:
    """A guest that only changes memory, through several rounds of RAM; a limit of 1 ms lets a few pages remain."""
    disk = session.recording.disks[0]
    guest = real_qemu.Guest(disk.size, limit=40)
    path = session.folder / disk.file
    real_qemu.create_raw(path, guest.boot_sector(session.folder) + bytes(disk.size - 512))
    with session.start() as vm:
        vm.wait_until(lambda: guest.written(path) == guest.limit, "the guest's writes")
        session.migrate()
        vm.wait_migration("completed")
        pages = vm.execute("query-migrate")["xbzrle-cache"]["pages"]
        vm.quit()
    if not pages:
        raise AssertionError("no page was sent as a delta: record it again")
    session.extra["guest_writes"] = guest.check(path.read_bytes())


def cancel_half_way(session: Session) -> None:
    """Cancel when a few blocks have gone."""
    with session.start() as vm:
        session.migrate()
        session.wait_stream(4 * MiB)
        vm.execute("migrate_cancel")
        session.end(vm)


def with_return_path(session: Session) -> None:
    """Listen on a socket, store what comes, say SHUT 0 when nothing comes any more."""
    session.is_captured = False
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(session.folder / "socket"))
    server.listen()

    def receive() -> None:
        peer, _ = server.accept()
        with peer, session.stream.open("wb") as file:
            peer.settimeout(IDLE)
            try:
                while data := peer.recv(MiB):
                    file.write(data)
            except TimeoutError:
                peer.sendall(bytes.fromhex("0001 0004 00000000"))
                peer.settimeout(None)
                peer.recv(1)

    receiver = threading.Thread(target=receive)
    receiver.start()
    with session.start() as vm:
        vm.migrate(f"unix:{session.folder}/socket")
        session.end(vm)
    receiver.join()
    server.close()


def qcow2_overlay(session: Session) -> None:
    """Blocks 1 and 3 of a qcow2 overlay differ from its raw base; they are what ``inc`` sends."""
    disk = session.recording.disks[0]
    base = session.folder / "base.raw"
    real_qemu.create_raw(base, dataclasses.replace(disk, name="base").contents)
    overlay = real_qemu.create_qcow2(
        session.folder / disk.file, disk.size, backing_file="base.raw", backing_fmt="raw", cluster_size=65536
    )
    for offset, value in ((MiB + 4096, 0x11), (3 * MiB + 512 * 1024, 0x33)):
        real_qemu.run("qemu-io", "-f", "qcow2", "-c", f"write -P {value} {offset} 65536", overlay)
    session.full()
    now = session.folder / "now.raw"
    real_qemu.qemu_img("convert", "-O", "raw", overlay, now)
    session.extra["base"] = {"seed": "base", "sha256": real_qemu.sha256(base.read_bytes())}
    session.extra["blocks"] = [1, 3]
    now.replace(session.folder / disk.file)


def overwritten_overlay(session: Session) -> None:
    """All of a qcow2 overlay differs from its base."""
    disk = session.recording.disks[0]
    real_qemu.create_raw(session.folder / "base.raw", bytes(disk.size))
    overlay = real_qemu.create_qcow2(
        session.folder / disk.file, disk.size, backing_file="base.raw", backing_fmt="raw", cluster_size=65536
    )
    real_qemu.run("qemu-io", "-f", "qcow2", "-c", f"write -P 17 0 {disk.size}", overlay)
    session.full()
    contents = b"\x11" * disk.size
    session.extra["disks"] = [{"name": disk.name, "size": disk.size, "sha256": real_qemu.sha256(contents)}]


def blockdev(session: Session) -> None:
    """``-blockdev`` has no drive id: two devices without a name, the second is the qcow2 file itself."""
    disk = session.recording.disks[0]
    real_qemu.create_qcow2(session.folder / disk.file, disk.contents)
    session.full()
    file = (session.folder / disk.file).read_bytes()
    guest = {"name": "", "size": disk.size, "sha256": real_qemu.sha256(disk.contents), "seed": "", "zero_blocks": []}
    session.extra["disks"] = [guest, {"name": "", "size": len(file), "sha256": real_qemu.sha256(file)}]


def qcow2_without_base(session: Session) -> None:
    """A sparse qcow2 image, sent in full."""
    disk = session.recording.disks[0]
    image = real_qemu.create_qcow2(session.folder / disk.file, disk.contents)
    session.full()
    real_qemu.qemu_img("convert", "-O", "raw", image, session.folder / "now.raw")
    (session.folder / "now.raw").replace(image)


def with_bitmap(session: Session) -> None:
    """A named dirty bitmap travels along; it counts as pending to the end, so nothing ends with a limit of 0."""
    with session.start() as vm:
        vm.execute("block-dirty-bitmap-add", node="drive0", name="bitmap0", granularity=65536)
        session.migrate()
        session.wait_stream(3 * MiB + 256 * 1024)
        vm.set_parameters(downtime_limit=300)
        session.end(vm)
