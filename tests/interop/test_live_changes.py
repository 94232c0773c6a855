# SPDX-License-Identifier: GPL-2.0-or-later
"""What may happen to a running VM while its disk is sent: snapshots, jobs, unplugging, a guest that stops, or QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import command
import lab
import live_vm
import pytest
import real_qemu
from live_vm import GUEST, SIZE, Machine, guest_image, sending
from real_qemu import MiB

import blkmig
from blkmig import errors, qemu

live_vm.require()

SLOWLY = ("send", "--progress=none", "--max-bandwidth=1M", "--no-zero-blocks")
"""Bulk of 16 MiB takes 16 seconds."""


def sent_bytes(stream: Path) -> int:
    """Return how long the stream's file is, which has a hidden name until it is complete."""
    found = [path for path in stream.parent.iterdir() if path.name.lstrip(".").startswith(stream.name)]
    return sum(path.stat().st_size for path in found)


def assert_in_bulk(stream: Path) -> None:
    """Fail if the migration went on until all of the disk was sent."""
    assert sent_bytes(stream) < SIZE


def wait_for_bulk(vm: Machine, process: subprocess.Popen[bytes], stream: Path) -> None:
    """Return when the first blocks are sent."""

    def has_begun() -> bool:
        assert process.poll() is None, command.finish(process).stderr
        return sent_bytes(stream) > 0

    vm.wait_until(has_begun, "bulk to begin")


# -- the disk --------------------------------------------------------------------------------------------------------


def take_snapshot(vm: Machine, folder: Path) -> None:
    overlay = {"node_name": "fmt0", "snapshot_file": f"{folder}/overlay", "snapshot_node_name": "overlay"}
    vm.execute("blockdev-snapshot-sync", **overlay)


def start_job(vm: Machine, folder: Path) -> None:
    (folder / "mirror").open("wb").truncate(SIZE)
    vm.execute("blockdev-add", driver="file", node_name="mirror", filename=f"{folder}/mirror")
    vm.execute("blockdev-mirror", job_id="job", device="fmt0", target="mirror", sync="full", speed=65536)


CHANGES: dict[str, Callable[[Machine, Path], None]] = {"snapshot": take_snapshot, "job": start_job}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_block_graph_is_noticed_in_bulk(folder: Path, change: str) -> None:
    """E18: not when bulk is over, hours later."""
    stream = folder / "stream"
    with (
        Machine(folder, guest_image(folder), "source") as vm,
        sending(*SLOWLY, vm.address, f"file:{stream}") as process,
    ):
        vm.wait_for_writes()
        wait_for_bulk(vm, process, stream)
        CHANGES[change](vm, folder)
        sent = command.finish(process)
        assert (sent.exit_code, "a snapshot was taken or a block job was started" in sent.stderr) == (1, True), sent
        assert_in_bulk(stream)
        assert vm.is_running()
        assert [name for name in vm.leftovers() if "blkmig" in name] == []


def test_a_disk_that_is_unplugged_is_noticed_in_bulk(folder: Path) -> None:
    """E18: nobody goes on to copy a disk that has no guest any more."""
    stream, second = folder / "stream", folder / "second.raw"
    second.open("wb").truncate(SIZE)
    disk = ("-blockdev", f"raw,node-name=second,file.driver=file,file.filename={second}")
    scsi = ("-device", "virtio-scsi-pci", "-device", "scsi-hd,id=sdb,drive=second")
    with (
        Machine(folder, guest_image(folder), "source", *disk, *scsi) as vm,
        sending(*SLOWLY, f"{vm.address},device=sdb", f"file:{stream}") as process,
    ):
        wait_for_bulk(vm, process, stream)
        vm.execute("device_del", id="sdb")
        sent = command.finish(process)
        assert (sent.exit_code, "was unplugged" in sent.stderr) == (1, True), sent
        assert_in_bulk(stream)
        assert vm.leftovers() == []


def test_a_disk_that_is_sent_is_not_resized(folder: Path) -> None:
    """E18: QEMU refuses that while blkmig's export is there."""
    with Machine(folder, guest_image(folder), "source") as vm, qemu.open_qemu(vm.address)[0]:
        with pytest.raises(real_qemu.QmpError):
            vm.execute("block_resize", node_name="fmt0", size=2 * SIZE)


# -- the guest -------------------------------------------------------------------------------------------------------


def test_a_guest_that_is_reset_is_copied_all_the_same(folder: Path) -> None:
    """E18: what it writes afterwards comes through the same nodes."""
    image, target = guest_image(folder), folder / "target.raw"
    with Machine(folder, image, "source") as vm, qemu.open_qemu(vm.address)[0] as disk:
        vm.wait_for_writes()

        def drive(outgoing: blkmig.OutgoingMigration) -> None:
            outgoing.iterate()
            vm.execute("system_reset")
            vm.wait_for_writes()
            outgoing.complete()

        lab.migrate(folder, "unix", [disk], {"vda": target}, drive=drive, writers_after="refuse")
        assert not vm.is_running()
        assert target.read_bytes() == image.read_bytes()
    assert GUEST.check(target.read_bytes()) > 0


def test_a_guest_that_the_operator_stops_stays_stopped(folder: Path) -> None:
    """E18: blkmig lets go on what it has stopped, and nobody else."""
    image, target = guest_image(folder), folder / "target.raw"
    with Machine(folder, image, "source") as vm, qemu.open_qemu(vm.address)[0] as disk:
        vm.wait_for_writes()

        def drive(outgoing: blkmig.OutgoingMigration) -> None:
            outgoing.iterate()
            vm.execute("stop")
            outgoing.iterate()
            outgoing.complete()

        lab.migrate(folder, "unix", [disk], {"vda": target}, drive=drive)
        assert not vm.is_running()
        assert target.read_bytes() == image.read_bytes()


@pytest.mark.parametrize("was_running", [True, False])
def test_a_guest_that_somebody_lets_go_on_while_it_is_held(folder: Path, was_running: bool) -> None:
    """E18: its disk moves, and is not used on two sides; whether it wrote already makes no difference."""
    with Machine(folder, guest_image(folder), "source") as vm, qemu.open_qemu(vm.address)[0] as disk:
        vm.wait_for_writes()
        if not was_running:
            vm.execute("stop")
        bitmap = disk.create_dirty_bitmap(MiB)
        disk.hold_writers()
        vm.execute("cont")
        with pytest.raises(errors.DeviceError, match="somebody let the guest go on"):
            disk.release_writers(refuse=True)
        disk.release_dirty_bitmap(bitmap)
        assert vm.is_running()


# -- QEMU ------------------------------------------------------------------------------------------------------------


def test_a_qemu_that_quits_says_why(folder: Path) -> None:
    """E18: at once, although the image's file could still be read."""
    stream = folder / "stream"
    with (
        Machine(folder, guest_image(folder), "source") as vm,
        sending(*SLOWLY, vm.address, f"file:{stream}") as process,
    ):
        wait_for_bulk(vm, process, stream)
        vm.quit()
        sent = command.finish(process)
        assert (sent.exit_code, "host-qmp-quit" in sent.stderr) == (1, True), sent
        assert_in_bulk(stream)
        assert "Traceback" not in sent.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_in_qemu(folder: Path, number: signal.Signals) -> None:
    """C5: a closed terminal is no reason to leave an export and a bitmap behind."""
    stream = folder / "stream"
    with (
        Machine(folder, guest_image(folder), "source") as vm,
        sending(*SLOWLY, vm.address, f"file:{stream}") as process,
    ):
        wait_for_bulk(vm, process, stream)
        process.send_signal(number)
        assert command.finish(process).exit_code == 128 + number
        assert vm.leftovers() == []
        assert vm.is_running()


@pytest.mark.parametrize("read", ["", ",read=nbd"])
@pytest.mark.parametrize("how", ["SIGINT", "--timeout"])
def test_a_qemu_that_freezes_keeps_nobody(folder: Path, how: str, read: str) -> None:
    """B8: one SIGINT ends it, and so does --timeout; the way out is named, and works."""
    stream = folder / "stream"
    limit = [f"--timeout={3 if how == '--timeout' else 600}"]
    with (
        Machine(folder, guest_image(folder), "source") as vm,
        sending(*SLOWLY, *limit, vm.address + read, f"file:{stream}") as process,
    ):
        wait_for_bulk(vm, process, stream)
        os.kill(vm.process.pid, signal.SIGSTOP)
        try:
            if how == "SIGINT":
                process.send_signal(signal.SIGINT)
            sent = command.finish(process)
        finally:
            os.kill(vm.process.pid, signal.SIGCONT)
        assert sent.exit_code == (130 if how == "SIGINT" else 4), sent
        assert f"blkmig cleanup {vm.address}" in sent.stderr
        assert_in_bulk(stream)
        assert command.run("cleanup", vm.address).exit_code == 0
        assert vm.leftovers() == []
        vm.wait_for_writes()
