# SPDX-License-Identifier: GPL-2.0-or-later
"""Record the golden streams: real QEMU 7.2, real bytes, disks whose contents compress to nearly nothing.

    python tests/golden/record.py [NAME...]

Each recording becomes ``NAME.stream.xz`` and an entry in ``manifest.json`` that says all that a test needs: the
command line, what was sent (size and sha256 of every disk when the source had ended) and what a receiver must find.
What differs from run to run: order and number of sections, the contents of the slack, what the guest wrote.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import pathlib
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import real_qemu  # noqa: E402
from real_qemu import MiB, Qemu  # noqa: E402

SMALL_BIOS = "/usr/share/seabios/bios.bin"
IDLE = 0.5
"""Seconds of silence after which a source that waits for SHUT is taken to have said everything."""


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
        if self.recording.run is not with_return_path:
            real_qemu.captured(vm, self.stream)
        if status == "completed":
            vm.quit()  # else QEMU may still be cleaning up, and then it aborts

    def wait_stream(self, nbytes: int) -> None:
        """Wait until the file holds `nbytes` of the stream."""
        self.vm.wait_until(lambda: self.stream.exists() and self.stream.stat().st_size >= nbytes, f"{nbytes} bytes")


# -- what is done ----------------------------------------------------------------------------------------------------


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


# -- the list --------------------------------------------------------------------------------------------------------

ONE = (Disk("drive0", 3 * MiB, zero_blocks=(1,)),)

RECORDINGS = [
    *(
        Recording(name=name, machine=machine, disks=ONE, note=note)
        for name, machine, note in (
            ("pc-2.2", "pc-i440fx-2.2", "no configuration, no footers, no vmdescription"),
            ("pc-2.3", "pc-i440fx-2.3", "no configuration, no footers"),
            ("pc-2.4", "pc-i440fx-2.4", "the first with configuration and footers"),
            ("pc-7.2", "pc-i440fx-7.2", "the plain case"),
            ("q35", "pc-q35-7.2", "another board"),
        )
    ),
    Recording(
        name="zero-blocks",
        disks=(Disk("drive0", 6 * MiB, zero_blocks=(1, 2, 5)),),
        capabilities=("zero_blocks",),
        note="zero blocks without payload, two in a row and the last one",
    ),
    Recording(
        name="three-disks",
        disks=(
            Disk("drive-virtio-disk0", 3 * MiB),
            Disk("disk-b", 2 * MiB, zero_blocks=(0, 1)),
            Disk("c", 2 * MiB + 128 * 1024),
        ),
        capabilities=("zero_blocks",),
        note="three disks, one of them all zero, one of no whole number of MiB",
    ),
    Recording(
        name="three-disks-2.2",
        machine="pc-i440fx-2.2",
        disks=(Disk("a", MiB), Disk("b", 2 * MiB), Disk("n" * 255, 3 * 512, path="long.raw")),
        note="the oldest container, a name of 255 bytes on a disk of 3 sectors",
    ),
    Recording(
        name="devices",
        disks=(
            Disk("ide0-hd0", 2 * MiB, options="if=ide,index=0"),
            Disk("floppy0", 2880 * 512, options="if=floppy"),
            Disk("cd", 2 * MiB, options="if=ide,index=2,media=cdrom,readonly=on", sent=False),
            Disk("pflash0", 64 * 1024, options="if=pflash,unit=0"),
            Disk("tiny", 3 * 512, options="if=virtio"),
        ),
        note="floppy, pflash and a disk of 3 sectors are one block or two; the read-only CD is not sent",
    ),
    Recording(
        name="unaligned",
        disks=(Disk("drive0", 2 * MiB + 5 * 512),),
        note="5 sectors in the last block, the rest of it is the sender's heap",
    ),
    Recording(
        name="unaligned-zero",
        disks=(Disk("drive0", 2 * MiB + 5 * 512, zero_blocks=(2,)),),
        capabilities=("zero_blocks",),
        note="the last, partial block is zero",
    ),
    Recording(
        name="no-disk",
        disks=(Disk("cd", MiB, options="if=ide,index=2,media=cdrom,readonly=on", sent=False),),
        note="nothing writable: block sections without blocks",
    ),
    Recording(
        name="qcow2",
        disks=(Image("drive0", 4 * MiB, zero_blocks=(1, 2), path="drive0.qcow2"),),
        run=qcow2_without_base,
        note="the guest-visible contents of a sparse qcow2 image",
    ),
    Recording(
        name="incremental",
        disks=(Image("drive0", 5 * MiB, path="drive0.qcow2"),),
        incremental=True,
        run=qcow2_overlay,
        verdict="incremental",
        note="only the blocks that the overlay holds, merged with the base",
    ),
    Recording(
        name="incremental-raw",
        disks=(Disk("drive0", 2 * MiB),),
        incremental=True,
        note="inc on a raw disk leaves nothing out",
    ),
    Recording(
        name="running",
        disks=(Disk("drive0", 3 * MiB, options="if=ide"),),
        memory="16M",
        arguments=("-bios", SMALL_BIOS),
        running=True,
        parameters={"downtime-limit": 0, "max-bandwidth": 16 * MiB},
        run=write_while_migrating,
        note="a boot sector writes all the time, so that blocks come again and again",
    ),
    Recording(
        name="running-2.3",
        machine="pc-i440fx-2.3",
        disks=(
            Disk("virtio0", 2 * MiB + 3 * 512, options="if=none"),
            Disk("ide0-hd0", 2 * MiB, options="if=ide"),
        ),
        memory="16M",
        arguments=("-bios", SMALL_BIOS, "-device", "virtio-blk-pci,drive=virtio0,ioeventfd=off,bootindex=1"),
        running=True,
        capabilities=("zero_blocks",),
        parameters={"downtime-limit": 0, "max-bandwidth": 16 * MiB},
        run=write_while_migrating,
        note="the same with two disks in an old container; the guest writes to the one with a partial last block",
    ),
    Recording(
        name="xbzrle",
        disks=(Disk("drive0", 2 * MiB, options="if=ide"),),
        memory="16M",
        arguments=("-bios", SMALL_BIOS),
        running=True,
        capabilities=("xbzrle",),
        parameters={"downtime-limit": 1, "max-bandwidth": MiB},
        run=dirty_memory,
        note="the guest keeps changing memory: RAM pages come again, as XBZRLE deltas",
    ),
    Recording(
        name="cancelled",
        disks=(Disk("drive0", 12 * MiB),),
        parameters={"downtime-limit": 0, "max-bandwidth": 8 * MiB},
        run=cancel_half_way,
        status="cancelled",
        verdict="cancelled",
        note="migrate_cancel in the middle of bulk",
    ),
    Recording(
        name="read-error",
        disks=(Faulty("drive0", 24 * MiB),),
        status="failed",
        verdict="error",
        note="the source cannot read block 20: footer without EOS, then nothing",
    ),
    Recording(
        name="postcopy-ram",
        disks=ONE,
        capabilities=("postcopy_ram",),
        run=with_return_path,
        note="commands 1, 2 and 3 before the first section",
    ),
    Recording(
        name="return-path",
        disks=ONE,
        capabilities=("return_path",),
        run=with_return_path,
        note="commands 1 and 2; the source waits for SHUT",
    ),
    Recording(
        name="ignore-shared",
        disks=ONE,
        memory="16M",
        arguments=("-object", "memory-backend-file,id=ram,size=16M,mem-path=ram,share=on", "-M", "memory-backend=ram"),
        capabilities=("x_ignore_shared",),
        note="an address behind each RAM block of the list, a capability in the configuration",
    ),
    Recording(
        name="compress",
        disks=ONE,
        capabilities=("compress",),
        note="RAM pages compressed with zlib",
        arguments=("-bios", SMALL_BIOS),
    ),
    Recording(
        name="dirty-bitmaps",
        disks=ONE,
        capabilities=("dirty_bitmaps",),
        run=with_bitmap,
        note="another live section between block and ram",
    ),
    Recording(
        name="validate-uuid",
        disks=ONE,
        capabilities=("validate_uuid",),
        arguments=("-uuid", "01234567-89ab-cdef-0123-456789abcdef"),
        note="a subsection in the configuration",
    ),
    Recording(
        name="blockdev-inline",
        disks=(Inline("", 2 * MiB, path="nameless.raw"),),
        note="one device with an empty name: its file is no node of its own",
    ),
    Recording(
        name="blockdev",
        disks=(Nameless("", 2 * MiB, path="nameless.qcow2"),),
        run=blockdev,
        verdict="error",
        note="two devices with empty names: the guest's disk and the bytes of its qcow2 file",
    ),
    Recording(
        name="lossy",
        disks=(Disk("drive0", 40 * MiB),),
        parameters={},
        verdict="lossy",
        note="the default downtime-limit: QEMU 7.2 says completed, most of the disk was never sent",
    ),
    Recording(
        name="lossy-incremental",
        disks=(Image("drive0", 40 * MiB, path="drive0.qcow2"),),
        parameters={},
        incremental=True,
        run=overwritten_overlay,
        verdict="lossy",
        note="the same with inc: no coverage tells, but the progress does",
    ),
]


# -- writing ---------------------------------------------------------------------------------------------------------


def describe_disk(disk: Disk, folder: pathlib.Path) -> dict[str, Any]:
    """Return the manifest's entry for one disk, as it is now."""
    contents = (folder / disk.file).read_bytes()
    entry: dict[str, Any] = {"name": disk.name, "size": len(contents), "sha256": real_qemu.sha256(contents)}
    if contents == disk.contents:
        entry |= {"seed": disk.name, "zero_blocks": list(disk.zero_blocks)}
    return entry


def record(recording: Recording) -> dict[str, Any]:
    """Make one recording, store it, and return its entry in the manifest."""
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        folder = pathlib.Path(name)
        session = Session(recording, folder)
        recording.run(session)
        stream = session.stream.read_bytes()
        packed = lzma.compress(stream, preset=9 | lzma.PRESET_EXTREME)
        (HERE / f"{recording.name}.stream.xz").write_bytes(packed)
        disks = [describe_disk(disk, folder) for disk in recording.disks if disk.sent]
        return {
            "name": recording.name,
            "note": recording.note,
            "qemu": real_qemu.version(),
            "command": " ".join(session.vm.command).replace(f"{folder}/", ""),
            "machine": recording.machine,
            "capabilities": [capability.replace("_", "-") for capability in recording.capabilities],
            "parameters": recording.parameters,
            "migrate": {"blk": True, "inc": recording.incremental},
            "status": recording.status,
            "verdict": recording.verdict,
            "stream": {"size": len(stream), "sha256": real_qemu.sha256(stream)},
            "disks": disks,
            **session.extra,
        }


def main(names: list[str]) -> None:
    """Record everything, or what was named, and write the manifest in the order of the list."""
    path = HERE / "manifest.json"
    entries = {entry["name"]: entry for entry in json.loads(path.read_text())} if path.exists() else {}
    for recording in RECORDINGS:
        if not names or recording.name in names:
            entries[recording.name] = record(recording)
            packed = (HERE / f"{recording.name}.stream.xz").stat().st_size
            print(f"{recording.name:20} {entries[recording.name]['stream']['size']:>10} {packed:>8}", file=sys.stderr)
    ordered = [entries[recording.name] for recording in RECORDINGS if recording.name in entries]
    path.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
