# SPDX-License-Identifier: GPL-2.0-or-later
"""The move of a whole VM that goes wrong: the guest runs somewhere, always, and who looks at it is told what happened.

RAM and devices by a real QEMU, the disk by the ``blkmig`` command.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import command
import live_vm
import pauses
import pytest
from live_vm import GUEST, SIZE, Machine, guest_image, sending

from blkmig import errors, qemu
from blkmig.qemu import preswitchover, recovery

live_vm.require()

WHOLE_VM = ("send", "--switchover=pause-before", "--progress=none")
OURS = {"pause-before-switchover", "return-path"}


def wait_until_prepared(vm: Machine, process: subprocess.Popen[bytes]) -> None:
    """Return when blkmig takes part in QEMU's own migration."""

    def is_prepared() -> bool:
        assert process.poll() is None, command.finish(process).stderr
        return vm.capabilities() >= OURS and bool(vm.leftovers())

    vm.wait_until(is_prepared, "blkmig to prepare")


@contextlib.contextmanager
def moving(folder: Path) -> Iterator[tuple[Machine, command.Receiver, subprocess.Popen[bytes]]]:
    """Run a VM and send its disk, up to where blkmig takes part in QEMU's own migration."""
    with (
        Machine(folder, guest_image(folder), "source") as source,
        command.receiver(f"unix:{folder}/disks", f"vda={folder}/target.raw") as receiver,
        sending(*WHOLE_VM, source.address, receiver.uri) as process,
    ):
        source.wait_for_writes()
        wait_until_prepared(source, process)
        yield source, receiver, process


def assert_as_before(vm: Machine) -> None:
    """Fail unless the guest goes on here and nothing tells that blkmig was there."""
    vm.wait_until(vm.is_running, "the guest to go on")
    vm.wait_for_writes()
    assert not vm.capabilities() & OURS
    assert vm.leftovers() == []


def cancel_migration(vm: Machine) -> None:
    vm.set_parameters(max_bandwidth=100_000)
    vm.execute("migrate", uri="exec:cat >/dev/null")
    vm.wait_migration("active")
    vm.execute("migrate_cancel")


ENDS: dict[str, tuple[Callable[[Machine], object], str]] = {
    "failed": (lambda vm: vm.execute("migrate", uri="exec:exit 3"), "is failed (Unable to write to command"),
    "refused": (lambda vm: vm.execute("migrate", uri="tcp:127.0.0.1:1"), "is failed (Failed to connect"),
    "cancelled": (cancel_migration, "is cancelled"),
}


@pytest.mark.parametrize("how", ENDS)
def test_qemus_own_migration_that_ends_ends_blkmigs(folder: Path, how: str) -> None:
    """E1: at once, with QEMU's reason, and not when somebody gets impatient."""
    end, reason = ENDS[how]
    with moving(folder) as (source, _, process):
        end(source)
        sent = command.finish(process)
        assert (sent.exit_code, reason in sent.stderr) == (1, True), sent.stderr
        assert "the guest goes on here" in sent.stderr
        assert_as_before(source)


def test_a_target_that_cannot_load_the_vm_leaves_the_guest_here(folder: Path) -> None:
    """E3: it lacks a device; QEMU hears of that on its return path, which blkmig switches on."""
    image, target = guest_image(folder), folder / "target.raw"
    target.open("wb").truncate(SIZE)
    with (
        Machine(folder, image, "source", "-device", "virtio-rng-pci") as source,
        Machine(folder, target, "target", incoming=True) as destination,
        command.receiver(f"unix:{folder}/disks", f"vda={target}") as receiver,
        sending(*WHOLE_VM, source.address, receiver.uri) as process,
    ):
        source.wait_for_writes()
        wait_until_prepared(source, process)
        source.execute("migrate", uri=destination.listen(f"unix:{folder}/ram"))
        sent = command.finish(process)
        assert sent.exit_code == 1, sent.stderr
        assert "QEMU could not hand the VM over" in sent.stderr
        assert destination.process.wait(30) != 0
        assert_as_before(source)
        source.quit()
    assert GUEST.check(image.read_bytes()) > 0


def test_a_one_way_channel_has_no_word(folder: Path) -> None:
    """E3: for a VM whose RAM goes into a file, without a return path."""
    with Machine(folder, guest_image(folder), "source") as source:
        source.wait_for_writes()
        [disk] = qemu.open_qemu(source.address, switchover="pause-before", return_path=False)
        with disk:
            disk.session.migrate(f"exec:cat >{folder}/ram")
            disk.hold_writers()
            disk.release_writers(refuse=True)
        assert source.execute("query-migrate")["status"] == "completed"
        assert not source.is_running()
        assert source.leftovers() == []


@contextlib.contextmanager
def taking_and_silent(path: Path) -> Iterator[None]:
    """Listen for one client, and take what it sends."""

    def take() -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client:
                while client.recv(1 << 20):
                    pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield


def test_a_target_that_says_nothing_about_the_vm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B9: it may have all of it; QEMU's own migration would wait for ever."""
    monkeypatch.setattr(preswitchover, "HAND_OVER_SECONDS", 0.5)
    monkeypatch.setattr(recovery, "GUEST_SECONDS", 0.5)
    with Machine(folder, guest_image(folder), "source") as source, taking_and_silent(folder / "ram"):
        source.wait_for_writes()
        [disk] = qemu.open_qemu(source.address, switchover="pause-before")
        with disk:
            disk.session.migrate(f"unix:{folder}/ram")
            disk.hold_writers()
            with pytest.raises(errors.InDoubt, match="cleanup --force"):
                disk.release_writers(refuse=True)
        assert not source.is_running()
        with pytest.raises(errors.InDoubt, match="cleanup --force"):
            qemu.cleanup(source.address)
        assert not source.is_running()
        monkeypatch.setattr(recovery, "GUEST_SECONDS", 10)
        assert "the guest: goes on" in qemu.cleanup(source.address, force=True)
        assert_as_before(source)


def test_a_cancel_while_the_vm_is_handed_over(folder: Path) -> None:
    """The target may have all of it: "cancelled" would say that the guest is this QEMU's."""
    with Machine(folder, guest_image(folder), "source") as source, taking_and_silent(folder / "ram"):
        source.wait_for_writes()
        [disk] = qemu.open_qemu(source.address, switchover="pause-before")
        with disk:
            disk.session.migrate(f"unix:{folder}/ram")
            disk.hold_writers()
            releasing = pauses.Call(lambda: disk.release_writers(refuse=True))
            source.wait_migration("device")
            disk.cancel()
            with pytest.raises(errors.InDoubt, match="cleanup --force"):
                releasing.result()
        assert not source.is_running()


@pytest.mark.parametrize("state", ["prepared", "pre-switchover"])
def test_an_interrupt_while_qemu_migrates(folder: Path, state: str) -> None:
    """B8, E1: all is as before, and nobody waits for QEMU's migration."""
    with moving(folder) as (source, receiver, process):
        if state == "pre-switchover":
            receiver.process.send_signal(signal.SIGSTOP)
            source.execute("migrate", uri="exec:cat >/dev/null")
            source.wait_migration(state)
        process.send_signal(signal.SIGINT)
        assert command.finish(process).exit_code == 130
        receiver.process.kill()
        assert_as_before(source)


def test_a_link_that_breaks_while_qemu_waits_lets_the_guest_go_on(folder: Path) -> None:
    """B9: the target has no use for the disks before QEMU hands over, so there is no doubt."""
    with moving(folder) as (source, receiver, process):
        receiver.process.send_signal(signal.SIGSTOP)
        source.execute("migrate", uri="exec:cat >/dev/null")
        source.wait_migration("pre-switchover")
        receiver.process.kill()
        sent = command.finish(process)
        assert sent.exit_code == errors.ChannelError.exit_code, sent.stderr
        assert "QEMU's migration is cancelled; the guest goes on here" in sent.stderr
        assert_as_before(source)


@pytest.mark.parametrize("state", ["prepared", "active", "pre-switchover"])
def test_a_blkmig_that_is_killed_is_cleaned_up_after(folder: Path, state: str) -> None:
    """E2: the guest goes on, each thing is said, and until then a plain send is refused with what to do."""
    with moving(folder) as (source, receiver, process):
        receiver.process.send_signal(signal.SIGSTOP)
        if state == "active":
            source.set_parameters(max_bandwidth=100_000)
        if state != "prepared":
            source.execute("migrate", uri="exec:cat >/dev/null")
            source.wait_migration(state)
        process.kill()
        process.wait(30)
        receiver.process.kill()
        refused = command.run("send", "--progress=none", source.address, f"file:{folder}/stream")
        assert refused.exit_code == 1, refused.stderr
        assert f"blkmig cleanup {source.address}" in refused.stderr
        cleaned = command.run("cleanup", source.address)
        assert cleaned.exit_code == 0, cleaned.stderr
        assert "capability pause-before-switchover: off again" in cleaned.stdout
        assert (f"QEMU's own migration, which was {state}: cancelled" in cleaned.stdout) == (state != "prepared")
        assert ("the guest: goes on" in cleaned.stdout) == (state == "pre-switchover"), cleaned.stdout
        assert_as_before(source)
        assert command.run("cleanup", source.address).stdout == "nothing was left\n"


def test_a_migration_of_unknown_origin_is_not_cleaned_up(folder: Path) -> None:
    """E2: somebody else's may wait in pre-switchover for good reasons; --force is told, and the way out is named."""
    with Machine(folder, guest_image(folder), "source") as source:
        source.wait_for_writes()
        source.set_capabilities(pause_before_switchover=True)
        source.execute("migrate", uri="exec:cat >/dev/null")
        source.wait_migration("pre-switchover")
        with pytest.raises(errors.DeviceError, match="QEMU's own migration is pre-switchover"):
            qemu.open_qemu(source.address)
        cleaned = command.run("cleanup", source.address)
        assert "nothing was left" in cleaned.stdout
        assert "--force" in cleaned.stderr
        assert not source.is_running()
        cleaned = command.run("cleanup", "--force", source.address).stdout
        assert "the guest: goes on" in cleaned
        assert "capability pause-before-switchover: off" in cleaned
        assert_as_before(source)
        source.set_capabilities(pause_before_switchover=True)
        assert "next migration will wait" in command.run("cleanup", source.address).stderr
        assert source.capabilities() >= {"pause-before-switchover"}
