# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig send`` into a real ``qemu -incoming``: it completes, and a guest sees the same disks.

Nothing on the command line speaks of QEMU, but for what a QEMU cannot load and for machine types up to 2.3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import command
import peers
import pytest
import real_qemu
from real_qemu import MiB, Qemu, QemuGoneError

import blkmig

peers.require("qemu-system-x86_64", "qemu-img", "qemu-io")
if not real_qemu.has_block_migration():
    peers.lacking("this QEMU cannot load block migration any more; 9.0 was the last one")

SIZES = (2 * MiB, 2 * MiB + 5 * 512, MiB + 512, 3 * MiB - 512, MiB)
FORMATS = {"raw": None, "qcow2-512": 512, "qcow2-64k": 65536, "qcow2-1m": MiB, "qcow2-2m": 2 * MiB}


@dataclasses.dataclass(frozen=True)
class Target:
    """A disk on both sides: the source file, and the image of the QEMU that takes it."""

    name: str
    source: Path
    image: Path

    @property
    def drive(self) -> str:
        """The destination's drive, without the guest's device; a drive that nobody uses makes QEMU 7.2 abort."""
        image_format = "qcow2" if self.image.suffix == ".qcow2" else "raw"
        return f"file={self.image},format={image_format},id={self.name}"

    def arguments(self, machine: str = "pc") -> list[str]:
        """The destination's arguments for the drive, and for the device that uses it."""
        if machine == "isapc":
            return ["-drive", f"{self.drive},if=ide"]
        device = "virtio-blk-device" if machine == "microvm" else "virtio-blk-pci"
        return ["-drive", f"{self.drive},if=none", "-device", f"{device},drive={self.name}"]


def make_target(folder: Path, name: str, size: int, cluster_size: int | None = None, *, dirty: bool = True) -> Target:
    """Write a source with data, holes and a last sector of its own, and a target of that size full of other data."""
    contents = bytearray(real_qemu.pattern(size, seed=name, holes=lambda block: block == 1 and size > 2 * MiB))
    contents[-512:] = b"last sector ".ljust(16)[:16] * 32
    source = real_qemu.create_raw(folder / f"{name}.raw", bytes(contents))
    old = real_qemu.pattern(size, seed=f"old {name}")
    if cluster_size is None:
        return Target(name, source, real_qemu.create_raw(folder / f"{name}.img", old))
    image = real_qemu.create_qcow2(folder / f"{name}.qcow2", old if dirty else size, cluster_size=cluster_size)
    return Target(name, source, image)


@contextlib.contextmanager
def incoming(
    folder: Path, *targets: Target, machine: str = "pc", uri: str = "tcp:127.0.0.1:0"
) -> Iterator[tuple[Qemu, str]]:
    """Start a destination and yield it with the URI to send to."""
    arguments = [word for target in targets for word in target.arguments(machine)]
    with Qemu(*arguments, folder=folder, machine=machine, incoming=True) as vm:
        yield vm, vm.listen(uri)


def send(targets: list[Target], uri: str, *options: str) -> command.Outcome:
    """Send the sources with the command."""
    disks = [f"{target.name}={target.source}" for target in targets]
    return command.run("send", "--json", "--progress=none", *options, *disks, uri)


@pytest.mark.parametrize("zeroes_as_data", [False, True])
def test_sizes_and_formats(tmp_path: Path, zeroes_as_data: bool) -> None:
    """All sizes on all formats go in one stream to one QEMU, which cannot load half of them from another QEMU."""
    targets = [
        make_target(tmp_path, f"disk-{label}-{size}", size, cluster_size, dirty=number % 2 == 0)
        for label, cluster_size in FORMATS.items()
        for number, size in enumerate(SIZES)
    ]
    with incoming(tmp_path, *targets) as (vm, uri):
        outcome = send(targets, uri, *(["--no-zero-blocks"] if zeroes_as_data else []))
        assert outcome.exit_code == 0, f"{outcome.stderr}{vm.log}"
        assert vm.wait_migration() == "completed"
        vm.quit()
    for target in targets:
        real_qemu.compare(target.source, target.image)


@pytest.mark.parametrize(
    ("machine", "options"),
    [
        ("pc-i440fx-2.2", ["--machine", "pc-i440fx-2.2"]),
        ("pc-i440fx-2.3", ["--machine", "pc-i440fx-2.3"]),
        ("pc-i440fx-2.4", []),
        ("pc-i440fx-7.2", []),
        ("pc-i440fx-7.2", ["--machine", "pc-i440fx-7.2"]),
        ("q35", []),
        ("microvm", []),
        ("isapc", []),
    ],
)
def test_machine_types(tmp_path: Path, machine: str, options: list[str]) -> None:
    targets = [make_target(tmp_path, "drive0", 2 * MiB + 1536), make_target(tmp_path, "drive1", 2 * MiB, 65536)]
    with incoming(tmp_path, *targets, machine=machine, uri=f"unix:{tmp_path}/s") as (vm, uri):
        outcome = send(targets, uri, *options)
        assert outcome.exit_code == 0, f"{outcome.stderr}{vm.log}"
        assert vm.wait_migration() == "completed"
        vm.quit()
    for target in targets:
        real_qemu.compare(target.source, target.image)


def test_stored_stream_is_loaded(tmp_path: Path) -> None:
    """A stream in a file suits QEMU as well; the commands of a return path must not be in it, or do no harm."""
    target = make_target(tmp_path, "drive0", 3 * MiB)
    outcome = send([target], f"file:{tmp_path}/stream", "--verify")
    assert outcome.exit_code == 0, outcome.stderr
    with incoming(tmp_path, target, uri=f"exec:cat {tmp_path}/stream") as (vm, _):
        assert vm.wait_migration() == "completed"
        vm.quit()
    real_qemu.compare(target.source, target.image)


def test_guest_boots_from_what_was_sent(tmp_path: Path) -> None:
    """The guest's disk is sent at rest, and the guest goes on writing where its disk says it was."""
    if not real_qemu.has_guest_tools():
        peers.lacking("binutils for x86 (as, ld) not installed")
    guest = real_qemu.Guest(2 * MiB + 512 * 9)
    source = real_qemu.create_raw(tmp_path / "a.raw", guest.boot_sector(tmp_path) + bytes(guest.size - 512))
    drive = ["-drive", f"file={source},format=raw,if=ide"]
    with Qemu(*drive, folder=tmp_path, memory="16M", running=True) as vm:
        vm.wait_until(lambda: guest.written(source) > 20, "the guest's writes")
        vm.execute("stop")
        vm.quit()
    before = guest.check(source.read_bytes())
    target = Target("drive0", source, real_qemu.create_raw(tmp_path / "b.img", bytes(guest.size)))
    with incoming(tmp_path, target) as (vm, uri):
        outcome = send([target], uri)
        assert outcome.exit_code == 0, f"{outcome.stderr}{vm.log}"
        assert vm.wait_migration() == "completed"
        vm.quit()
    drive = ["-drive", f"file={target.image},format=raw,if=ide"]
    with Qemu(*drive, folder=tmp_path, memory="16M", running=True) as vm:
        vm.wait_until(lambda: guest.written(target.image) > before + 20, "the guest to go on")
        vm.execute("stop")
        vm.quit()
    assert guest.check(target.image.read_bytes()) > before + 20


def test_disk_under_load(tmp_path: Path) -> None:
    """Writers in other threads rewrite the disk, and its last, overlapping block above all, while it goes."""
    size = 8 * MiB + 7 * 512
    seed = 20_09
    target = Target("drive0", tmp_path / "a.raw", real_qemu.create_raw(tmp_path / "b.img", bytes(size)))
    real_qemu.create_raw(target.source, real_qemu.pattern(size, seed="a"))
    stopping = threading.Event()

    def write(disk: blkmig.FileBackend, number: int) -> None:
        generator = random.Random(seed + number)
        with contextlib.suppress(blkmig.errors.DeviceError):
            while not stopping.wait(0.0005):
                start = size - MiB - 8192 if generator.random() < 0.5 else 0
                offset = generator.randrange(start // 512, size // 512 - 8) * 512
                disk.pwrite(generator.randbytes(4096), offset)

    with incoming(tmp_path, target) as (vm, uri), blkmig.FileBackend(target.source, name="drive0") as disk:
        writers = [threading.Thread(target=write, args=(disk, number)) for number in range(2)]
        for writer in writers:
            writer.start()
        try:
            statistics = blkmig.send([disk], uri, max_bandwidth=32 * MiB, downtime_limit=1.0, writers_after="refuse")
        finally:
            stopping.set()
            for writer in writers:
                writer.join()
        assert vm.wait_migration() == "completed"
        vm.quit()
    assert statistics.blocks > 9, f"seed {seed}: nothing was sent again"
    assert target.image.read_bytes() == target.source.read_bytes(), f"seed {seed}"


def test_tiny_disks(tmp_path: Path) -> None:
    """A QEMU cannot load a disk under 1 MiB that holds data: refused before anything is sent. A zero one it can."""
    data = make_target(tmp_path, "data", 700 << 10)
    zero = Target("zero", tmp_path / "zero.raw", real_qemu.create_raw(tmp_path / "zero.img", b"\xaa" * (700 << 10)))
    real_qemu.create_raw(zero.source, bytes(700 << 10))
    with incoming(tmp_path, data, zero) as (vm, uri):
        outcome = send([data], uri, "--qemu")
        assert outcome.exit_code in (1, 2), outcome.stderr
        assert "1 MiB" in outcome.stderr or "1.0 MiB" in outcome.stderr
        assert vm.execute("query-migrate").get("status") in (None, "setup", "none")
        outcome = send([zero], uri, "--qemu")
        assert outcome.exit_code == 0, f"{outcome.stderr}{vm.log}"
        assert vm.wait_migration() == "completed"
        vm.quit()
    real_qemu.compare(zero.source, zero.image)


@pytest.mark.parametrize("uri", ["tcp:127.0.0.1:0", "unix:s"])
def test_unknown_disk(tmp_path: Path, uri: str) -> None:
    """QEMU ends; the error says at which disk the link broke and what QEMU usually means by that."""
    target = make_target(tmp_path, "drive0", 6 * MiB)
    other = dataclasses.replace(target, name="other")
    with incoming(tmp_path, other, uri=uri.replace("unix:s", f"unix:{tmp_path}/s")) as (vm, address):
        outcome = send([target], address)
        with pytest.raises(QemuGoneError, match="unknown block device"):
            vm.wait_migration("completed")
    assert outcome.exit_code in (1, 5), outcome.stderr
    assert "drive0" in outcome.stderr
    assert "QEMU" in outcome.stderr


@pytest.mark.parametrize("machine", ["pc-i440fx-2.2", "pc-i440fx-2.3", "pc-i440fx-7.2"])
@pytest.mark.parametrize("uri", ["tcp:127.0.0.1:0", "unix:s"])
def test_failure_of_a_stream_that_is_read_at_once(tmp_path: Path, uri: str, machine: str) -> None:
    """A few bytes, all zero blocks, are gone before the QEMU ends: only the return path tells that it failed."""
    source = real_qemu.create_raw(tmp_path / "a.raw", bytes(4 * MiB))
    target = Target("drive0", source, real_qemu.create_raw(tmp_path / "b.img", bytes(4 * MiB)))
    other = dataclasses.replace(target, name="other")
    with incoming(tmp_path, other, machine=machine, uri=uri.replace("unix:s", f"unix:{tmp_path}/s")) as (vm, address):
        outcome = send([target], address, "--machine", machine)
        with pytest.raises(QemuGoneError, match="unknown block device"):
            vm.wait_migration("completed")
    assert outcome.exit_code == 5


def test_without_return_path(tmp_path: Path) -> None:
    target = make_target(tmp_path, "drive0", 3 * MiB)
    with incoming(tmp_path, target, machine="pc-i440fx-2.2") as (vm, uri):
        outcome = send([target], uri, "--machine", "pc-i440fx-2.2", "--no-return-path")
        assert outcome.exit_code == 0, outcome.stderr
        assert vm.wait_migration() == "completed"
        vm.quit()
    real_qemu.compare(target.source, target.image)


def test_smaller_target(tmp_path: Path) -> None:
    target = make_target(tmp_path, "drive0", 6 * MiB)
    target.image.write_bytes(bytes(2 * MiB))
    with incoming(tmp_path, target) as (vm, address):
        outcome = send([target], address)
        with pytest.raises(QemuGoneError):
            vm.wait_migration("completed")
    assert outcome.exit_code in (1, 5), outcome.stderr
    assert "drive0" in outcome.stderr


def test_qemu_killed_half_way(tmp_path: Path) -> None:
    target = make_target(tmp_path, "drive0", 16 * MiB)
    with incoming(tmp_path, target) as (vm, address):
        disk = f"drive0={target.source}"
        process = command.start("send", "--max-bandwidth", "4M", "--progress=none", disk, address)
        vm.wait_until(lambda: first_block(target.image) == first_block(target.source), "first block")
        vm.close()
        outcome = command.finish(process)
    assert outcome.exit_code == 5, outcome.stderr
    assert "drive0" in outcome.stderr


def first_block(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MiB)


def test_nobody_listens(tmp_path: Path) -> None:
    target = make_target(tmp_path, "drive0", MiB)
    outcome = send([target], f"unix:{tmp_path}/nobody", "--connect-timeout", "0.2")
    assert outcome.exit_code == 5
    assert "nobody" in outcome.stderr


@pytest.mark.parametrize("digests", [False, True])
def test_incremental_onto_a_copy_of_the_base(tmp_path: Path, digests: bool) -> None:
    """A raw overlay over its base goes to a qcow2 overlay over a copy of the same base.

    A13: with digests, the stream says first what the base holds, which a QEMU passes over.
    """
    size = 5 * MiB
    base = real_qemu.create_raw(tmp_path / "base.raw", real_qemu.pattern(size, seed="base"))
    top = tmp_path / "top.raw"
    with top.open("wb") as file:
        file.truncate(size)
        file.seek(3 * MiB + 65536)
        file.write(b"changed " * 8192)
    image = real_qemu.create_qcow2(tmp_path / "top.qcow2", size, backing_file=base, backing_fmt="raw")
    target = Target("drive0", top, image)
    with incoming(tmp_path, target) as (vm, uri), blkmig.FileBackend(top, name="drive0", base=str(base)) as disk:
        statistics = blkmig.send([disk], uri, shared_base=True, digests=digests)
        assert vm.wait_migration() == "completed"
        vm.quit()
    assert statistics.blocks == 1
    expected = bytearray(base.read_bytes())
    expected[3 * MiB + 65536 : 3 * MiB + 65536 + 8 * 8192] = b"changed " * 8192
    real_qemu.compare(real_qemu.create_raw(tmp_path / "expected.raw", bytes(expected)), image)


def test_qemu_to_blkmig_to_qemu(tmp_path: Path) -> None:
    """A stream from a QEMU is received, and what came is sent on to another QEMU."""
    target = make_target(tmp_path, "drive0", 3 * MiB + 512)
    middle = tmp_path / "middle.raw"
    with (
        command.receiver(f"unix:{tmp_path}/s", f"drive0={middle}", "--size", str(3 * MiB + 512)) as receiver,
        Qemu("-drive", f"file={target.source},format=raw,id=drive0,if=none", folder=tmp_path) as vm,
    ):
        vm.set_parameters(downtime_limit=0)
        vm.set_capabilities(return_path=True)
        vm.migrate(receiver.uri)
        assert vm.wait_migration() == "completed"
        assert receiver.finish().exit_code == 0
        vm.quit()
    with incoming(tmp_path, target) as (vm, uri):
        outcome = send([dataclasses.replace(target, source=middle)], uri)
        assert outcome.exit_code == 0, f"{outcome.stderr}{vm.log}"
        assert vm.wait_migration() == "completed"
        vm.quit()
    real_qemu.compare(target.source, target.image)


def test_a_dry_run_leaves_a_qemu_that_waits_as_it_is(tmp_path: Path) -> None:
    """E9: it takes the first connection for its migration and ends with it, so none is made; then it still serves."""
    target = make_target(tmp_path, "drive0", 2 * MiB)
    with Qemu(*target.arguments(), folder=tmp_path, incoming=True) as vm:
        uri = vm.listen()
        told = command.run("send", "--dry-run=0.1", f"drive0={target.source}", uri)
        assert told.exit_code == 0, told.stderr
        assert "the link was not measured: no receiver that can be measured answers" in told.stdout
        assert command.run("send", f"drive0={target.source}", uri).exit_code == 0
        assert vm.wait_migration() == "completed"
