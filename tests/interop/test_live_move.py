# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may use a disk that was to move, when a blkmig is killed in the pause, or the target's word does not come (B9).

The guest of a VM, and the clients of a storage daemon: they go on where the target cannot have the disk, and stay held
where it may, until somebody says that they shall go on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import command
import lab
import peers
import pytest
import real_qemu
import storage_daemon
from live_vm import Machine, guest_image
from real_qemu import MiB

from blkmig import errors, qemu
from blkmig.migration import made

peers.require("qemu-system-x86_64", "qemu-storage-daemon", "qemu-img", "qemu-io")
if not real_qemu.has_guest_tools():
    peers.lacking("an assembler for x86 (Debian: binutils)")


KILLED_IN_THE_PAUSE = """
import os, signal, sys
from blkmig import qemu
disk = qemu.open_qemu(sys.argv[1])[0]
disk.create_dirty_bitmap(1 << 20)
if "moving" in sys.argv:
    disk.about_to_move()
disk.hold_writers()
disk.sync_dirty()
disk.sync_dirty()  # as before anything can leave
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in_the_pause(address: str, *words: str) -> None:
    """Run a blkmig that is killed while it holds the writers."""
    done = subprocess.run([sys.executable, "-c", KILLED_IN_THE_PAUSE, address, *words], env=command.environment())
    assert done.returncode == -signal.SIGKILL


def assert_goes_on(vm: Machine) -> None:
    vm.wait_for_writes()
    assert vm.leftovers() == []
    assert command.run("cleanup", vm.address).stdout == "nothing was left\n"


def test_a_guest_that_a_killed_blkmig_held_goes_on(folder: Path) -> None:
    """E2, B9: the end of the stream had not left; until then a send is refused, with what to do."""
    with Machine(folder, guest_image(folder), "source") as vm:
        vm.wait_for_writes()
        kill_in_the_pause(vm.address)
        assert not vm.is_running()
        with pytest.raises(errors.DeviceError, match=f"with the writers held; first: blkmig cleanup {vm.address}"):
            qemu.open_qemu(vm.address)
        cleaned = command.run("cleanup", vm.address)
        assert "the guest, stopped for the last pass: goes on" in cleaned.stdout, cleaned
        assert_goes_on(vm)


def test_a_guest_whose_disk_may_have_moved_stays_stopped(folder: Path) -> None:
    """B9: `cleanup` never starts it without being told."""
    with Machine(folder, guest_image(folder), "source") as vm:
        vm.wait_for_writes()
        kill_in_the_pause(vm.address, "moving")
        for _ in range(2):
            cleaned = command.run("cleanup", vm.address)
            assert (cleaned.exit_code, "the target may own the disks" in cleaned.stderr) == (7, True), cleaned
            assert not vm.is_running()
        assert command.run("send", vm.address, f"file:{folder}/stream").exit_code == 1
        assert not vm.is_running()
        cleaned = command.run("cleanup", "--force", vm.address)
        assert "goes on" in cleaned.stdout, cleaned
        assert_goes_on(vm)


def test_a_guest_that_the_operator_stopped_is_not_started(folder: Path) -> None:
    """E2: neither with nor without leftovers of a blkmig that was killed before it held anybody."""
    with Machine(folder, guest_image(folder), "source") as vm:
        vm.wait_for_writes()
        vm.execute("stop")
        code = KILLED_IN_THE_PAUSE.replace("disk.hold_writers()", "")
        subprocess.run([sys.executable, "-c", code, vm.address], check=False, env=command.environment())
        cleaned = command.run("cleanup", vm.address)
        assert "bitmap blkmig-" in cleaned.stdout
        assert "unless its disks have moved: cont" in cleaned.stderr
        assert not vm.is_running()


def test_a_guest_that_somebody_let_go_on_before_the_clean_up(folder: Path) -> None:
    """B9: then there is nothing to be in doubt about."""
    with Machine(folder, guest_image(folder), "source") as vm:
        vm.wait_for_writes()
        kill_in_the_pause(vm.address, "moving")
        vm.execute("cont")
        assert command.run("cleanup", vm.address).exit_code == 0
        assert_goes_on(vm)


@pytest.mark.parametrize("words", [(), ("moving",)])
def test_the_export_of_a_storage_daemon_is_opened_again(folder: Path, words: tuple[str, ...]) -> None:
    """E2, B9: its clients were held by closing it."""
    image = folder / "disk0.raw"
    image.open("wb").truncate(4 * MiB)
    with storage_daemon.StorageDaemon(folder, *storage_daemon.image_options(image, export="vol 1")) as daemon:
        kill_in_the_pause(daemon.address, *words)
        assert "disk0-w" not in [entry["id"] for entry in daemon.ask("query-block-exports")]
        cleaned = command.run("cleanup", f"qemu:{daemon.qmp_path}")
        if words:
            assert cleaned.exit_code == 7, cleaned
            assert "disk0-w" not in [entry["id"] for entry in daemon.ask("query-block-exports")]
            cleaned = command.run("cleanup", "--force", f"qemu:{daemon.qmp_path}")
        assert "the export disk0-w, closed for the last pass: open again" in cleaned.stdout, cleaned
        client = storage_daemon.QemuIo(daemon.uri("vol 1"))
        assert client.run("write -P 1 0 4k")
        client.close()
        assert daemon.leftovers() == []


def test_a_target_that_goes_away_without_its_word_leaves_the_guest_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9: it has all that it needs; what to do is said, for each side, and `cleanup` knows of it afterwards."""

    def interrupted(targets: made.MadeTargets) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(made.MadeTargets, "give_names", interrupted)
    with Machine(folder, guest_image(folder), "source") as vm:
        vm.wait_for_writes()
        with qemu.open_qemu(vm.address)[0] as disk, pytest.raises(errors.InDoubt, match="cleanup --force"):
            lab.migrate(folder, "unix", [disk], {"vda": folder / "target.raw"}, writers_after="refuse")
        assert not vm.is_running()
        assert [name for name in vm.leftovers() if not name.endswith(("held", "moved"))] == []
        assert command.run("cleanup", vm.address).exit_code == 7
        assert not vm.is_running()
        command.run("cleanup", "--force", vm.address)
        assert_goes_on(vm)


def test_a_link_that_breaks_before_the_end_lets_the_guest_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B9: the target cannot have the disk."""
    with Machine(folder, guest_image(folder), "source") as vm:
        vm.wait_for_writes()
        with qemu.open_qemu(vm.address)[0] as disk:
            hold = disk.hold_writers

            def hold_and_lose_the_link() -> None:
                hold()
                receiver.migration.cancel()
                receiver.join()

            monkeypatch.setattr(disk, "hold_writers", hold_and_lose_the_link)
            receiver = lab.Receiver(f"unix:{folder}/link", {"vda": folder / "target.raw"})
            with pytest.raises(errors.MigrationError) as caught:
                lab.blkmig.send([disk], receiver.uri, writers_after="refuse")
            assert not isinstance(caught.value, errors.InDoubt)
        assert_goes_on(vm)


@pytest.mark.parametrize("seed", range(3))
def test_a_move_that_is_killed_in_its_pause(folder: Path, seed: int) -> None:
    """E2, B9: wherever that is in the pause, the guest goes on, or it is said why it does not."""
    with (
        Machine(folder, guest_image(folder), "source") as vm,
        command.receiver(f"unix:{folder}/link", f"vda={folder}/target.raw") as receiver,
    ):
        vm.wait_for_writes()
        process = command.start("send", "--move", "--progress=none", "--downtime-limit=1", vm.address, receiver.uri)
        vm.qmp.wait_event(lambda event: event["event"] == "STOP")
        threading.Event().wait(seed * 0.002)
        process.kill()
        command.finish(process)
        receiver.process.kill()
        cleaned = command.run("cleanup", vm.address)
        if not vm.is_running():  # it had left, or was complete
            assert cleaned.exit_code == 7 or "unless its disks have moved" in cleaned.stderr, cleaned
            command.run("cleanup", "--force", vm.address)
            if cleaned.exit_code == 0:
                vm.execute("cont")
        assert_goes_on(vm)
