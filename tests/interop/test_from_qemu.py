# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU migrates, ``blkmig receive`` takes its disks: every kind of stream that it can send.

`downtime-limit` is 0 wherever a stream must be complete: QEMU 7.2 to 9.0 lose blocks otherwise, which has its own test.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import command
import peers
import pytest
import real_qemu
from real_qemu import MiB, Qemu, QmpError

from blkmig.files import partial

peers.require("qemu-system-x86_64", "qemu-img", "qemu-io")
if not real_qemu.has_block_migration():
    peers.lacking("this QEMU has no `migrate -b` any more; 9.0 was the last one")


def drive(path: Path, name: str = "drive0", options: str = "if=none", image_format: str = "raw") -> list[str]:
    """Return the arguments for one drive."""
    return ["-drive", f"file={path},format={image_format},id={name},{options}"]


def make_disk(folder: Path, name: str, size: int, zero_blocks: tuple[int, ...] = ()) -> Path:
    """Write a source disk with a pattern of its own."""
    contents = real_qemu.pattern(size, seed=name, holes=lambda block: block in zero_blocks)
    return real_qemu.create_raw(folder / f"{name}.raw", contents)


def start(folder: Path, *arguments: str, **options: Any) -> Qemu:
    """Start a source that loses nothing."""
    vm = Qemu(*arguments, folder=folder, **options)
    vm.set_parameters(downtime_limit=0)
    return vm


@pytest.mark.parametrize(
    "machine", ["pc-i440fx-2.2", "pc-i440fx-2.3", "pc-i440fx-2.4", "pc-i440fx-7.2", "q35", "isapc", "microvm"]
)
def test_machine_types(tmp_path: Path, machine: str) -> None:
    source = make_disk(tmp_path, "drive0", 3 * MiB, zero_blocks=(1,))
    with (
        command.receiver(f"unix:{tmp_path}/s", f"drive0={tmp_path}/copy.raw", "--size", "3M") as receiver,
        start(tmp_path, *drive(source), machine=machine) as vm,
    ):
        vm.migrate(receiver.uri)
        assert vm.wait_migration() == "completed"
        result = receiver.finish().result
        vm.quit()
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()
    assert result["disks"]["drive0"]["blocks"] == 3


@pytest.mark.parametrize("zero_blocks", [True, False])
def test_many_disks_over_tcp(tmp_path: Path, zero_blocks: bool) -> None:
    """Hard disk, floppy, flash and 3 sectors are sent, each of its own size; the read-only CD is not."""
    disks = {
        "ide0-hd0": (3 * MiB, "if=ide,index=0"),
        "floppy0": (2880 * 512, "if=floppy"),
        "pflash0": (128 << 10, "if=pflash,unit=0"),
        "tiny": (3 * 512, "if=virtio"),
        "odd": (2 * MiB + 5 * 512, "if=virtio"),
        "zero": (2 * MiB, "if=virtio"),
    }
    arguments, targets, sizes = [], [], []
    for name, (size, options) in disks.items():
        path = make_disk(tmp_path, name, size, zero_blocks=(0, 1) if name == "zero" else ())
        arguments += drive(path, name, options)
        targets.append(f"{name}={tmp_path}/{name}.copy")
        sizes += ["--size", f"{name}={size}"]
    arguments += drive(make_disk(tmp_path, "cd", MiB), "cd", "if=ide,index=2,media=cdrom,readonly=on")
    with (
        command.receiver("tcp:127.0.0.1:0", *targets, *sizes) as receiver,
        start(tmp_path, *arguments) as vm,
    ):
        vm.set_capabilities(zero_blocks=zero_blocks)
        vm.migrate(receiver.uri)
        assert vm.wait_migration() == "completed"
        result = receiver.finish().result
        vm.quit()
    assert set(result["disks"]) == set(disks)
    assert result["disks"]["zero"]["zero_blocks"] == (2 if zero_blocks else 0)
    for name in disks:
        assert (tmp_path / f"{name}.copy").read_bytes() == (tmp_path / f"{name}.raw").read_bytes(), name


@pytest.mark.parametrize(
    "capability", ["return_path", "postcopy_ram", "x_ignore_shared", "xbzrle", "compress", "dirty_bitmaps"]
)
def test_capabilities(tmp_path: Path, capability: str) -> None:
    source = make_disk(tmp_path, "drive0", 3 * MiB)
    arguments = drive(source)
    if capability == "x_ignore_shared":
        arguments += ["-object", f"memory-backend-file,id=ram,size=4M,mem-path={tmp_path}/ram,share=on"]
        arguments += ["-M", "memory-backend=ram"]
    with (
        command.receiver(f"unix:{tmp_path}/s", f"drive0={tmp_path}/copy.raw", "--size", "3M") as receiver,
        start(tmp_path, *arguments) as vm,
    ):
        vm.set_capabilities(**{capability: True})
        if capability == "dirty_bitmaps":
            vm.execute("block-dirty-bitmap-add", node="drive0", name="bitmap0")
        vm.migrate(receiver.uri)
        if capability == "dirty_bitmaps":  # they count as pending to the end, so a limit of 0 is never met
            vm.wait_until(lambda: has_tail(tmp_path / "copy.raw", source), "the last block")
            vm.set_parameters(downtime_limit=300)
        assert vm.wait_migration() == "completed"
        outcome = receiver.finish()
        vm.quit()
    assert outcome.exit_code == 0, outcome.stderr
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


def has_tail(copy: Path, source: Path) -> bool:
    """Whether the last sector has come: then bulk is over, for it reads the blocks in order."""
    copy = copy.with_name(partial.partial_name(copy.name))
    return copy.exists() and copy.read_bytes()[-512:] == source.read_bytes()[-512:]


@pytest.mark.parametrize("machine", ["pc-i440fx-2.2", "pc-i440fx-2.3", "q35", "microvm"])
def test_return_path_of_other_machines(tmp_path: Path, machine: str) -> None:
    """The source does not close before it hears SHUT, and up to 2.2 nothing marks the stream's end."""
    source = make_disk(tmp_path, "drive0", 3 * MiB)
    with (
        command.receiver("tcp:127.0.0.1:0", f"drive0={tmp_path}/copy.raw", "--size", "3M") as receiver,
        start(tmp_path, *drive(source), machine=machine) as vm,
    ):
        vm.set_capabilities(return_path=True)
        vm.migrate(receiver.uri)
        assert vm.wait_migration() == "completed"
        assert receiver.finish().exit_code == 0
        vm.quit()
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("return_path", [False, True])
def test_running_guest(tmp_path: Path, return_path: bool) -> None:
    """A boot sector writes numbered blocks while its disk goes, slowly, so that blocks come again and again."""
    if not real_qemu.has_guest_tools():
        peers.lacking("binutils for x86 (as, ld) not installed")
    guest = real_qemu.Guest(8 * MiB + 3 * 512)
    contents = guest.boot_sector(tmp_path) + bytes(guest.size - 1024) + b"tail" * 128  # the guest leaves the tail alone
    source = real_qemu.create_raw(tmp_path / "a.raw", contents)
    copy = tmp_path / "copy.raw"
    virtio = ["-device", "virtio-blk-pci,drive=drive0,ioeventfd=off"]
    with (
        command.receiver("tcp:127.0.0.1:0", f"drive0={copy}", "--size", f"drive0={guest.size}") as receiver,
        start(tmp_path, *drive(source), *virtio, memory="16M", running=True) as vm,
    ):
        vm.wait_until(lambda: guest.written(source) > 0, "the guest to boot")
        vm.set_parameters(max_bandwidth=16 * MiB)
        vm.set_capabilities(return_path=return_path)
        before = guest.written(source)
        vm.migrate(receiver.uri)
        vm.wait_until(lambda: guest.written(source) > before + 150 or has_ended(vm), "the guest's writes")
        vm.wait_until(lambda: has_tail(copy, source) or has_ended(vm), "the last block")
        vm.set_parameters(downtime_limit=100_000)
        assert vm.wait_migration() == "completed"
        result = receiver.finish().result
        vm.quit()
    assert copy.read_bytes() == source.read_bytes()
    if guest.check(copy.read_bytes()) > before + 150:
        assert result["disks"]["drive0"]["resent_blocks"] > 0


def has_ended(vm: Qemu) -> bool:
    """Whether the migration is over: with a quiet guest, nothing may be dirty at some moment."""
    return vm.execute("query-migrate")["status"] in real_qemu.FINAL


def test_incremental_overlay(tmp_path: Path) -> None:
    base = make_disk(tmp_path, "base", 5 * MiB)
    overlay = real_qemu.create_qcow2(tmp_path / "top.qcow2", 5 * MiB, backing_file=base, backing_fmt="raw")
    for offset, value in ((MiB + 4096, 0x11), (3 * MiB + 512 * 1024, 0x33)):
        real_qemu.run("qemu-io", "-f", "qcow2", "-c", f"write -P {value} {offset} 65536", overlay)
    real_qemu.run("qemu-io", "-f", "qcow2", "-c", f"write -z {4 * MiB} {MiB}", overlay)
    copy = tmp_path / "copy.raw"
    copy.write_bytes(base.read_bytes())
    with (
        command.receiver(f"unix:{tmp_path}/s", f"drive0={copy}", "--incremental") as receiver,
        start(tmp_path, *drive(overlay, image_format="qcow2")) as vm,
    ):
        vm.migrate(receiver.uri, inc=True)
        assert vm.wait_migration() == "completed"
        result = receiver.finish().result
        vm.quit()
    assert result["disks"]["drive0"]["blocks"] == 3
    real_qemu.compare(overlay, copy)


def test_cancel_then_migrate_again(tmp_path: Path) -> None:
    source = make_disk(tmp_path, "drive0", 48 * MiB)
    target = f"drive0={tmp_path}/copy.raw"
    with start(tmp_path, *drive(source)) as vm:
        vm.set_parameters(max_bandwidth=8 * MiB, downtime_limit=0)  # 0: never "completed" before it is
        with command.receiver(f"unix:{tmp_path}/s", target, "--size", "48M") as receiver:
            vm.migrate(receiver.uri)
            vm.wait_until(lambda: has_sent_something(vm), "the first bytes")
            vm.execute("migrate_cancel")
            assert vm.wait_migration() == "cancelled"
            outcome = receiver.finish()
        assert outcome.exit_code == 5
        assert "cancelled" in outcome.stderr or "ended" in outcome.stderr or "ends" in outcome.stderr
        vm.set_parameters(max_bandwidth=1 << 30)
        with command.receiver(f"unix:{tmp_path}/s2", target) as receiver:
            vm.wait_until(lambda: try_to_migrate(vm, receiver.uri), "the end of the cancelled migration")
            assert vm.wait_migration() == "completed"
            assert receiver.finish().exit_code == 0
        vm.quit()
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


def has_sent_something(vm: Qemu) -> bool:
    """Whether the first blocks have gone; what is cancelled while it is being set up may go on all the same."""
    told = vm.execute("query-migrate")
    return bool(told["status"] == "active" and told.get("disk", {}).get("transferred", 0) > 0)


def try_to_migrate(vm: Qemu, uri: str) -> bool:
    """Start a migration unless QEMU is still busy with the last one."""
    try:
        vm.migrate(uri)
    except QmpError:
        return False
    return True


def test_read_error_of_the_source(tmp_path: Path) -> None:
    source = make_disk(tmp_path, "drive0", 8 * MiB)
    fault = "file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=10240"
    faulty = f"driver=raw,id=drive0,if=none,file.driver=blkdebug,file.image.driver=file,file.image.filename={source}"
    with (
        command.receiver(f"unix:{tmp_path}/s", f"drive0={tmp_path}/copy.raw") as receiver,
        start(tmp_path, "-drive", f"{faulty},{fault}") as vm,
    ):
        vm.migrate(receiver.uri)
        assert vm.wait_migration() == "failed"
        outcome = receiver.finish()
    assert outcome.exit_code == 1
    assert "could not read its disk" in outcome.stderr


@pytest.mark.parametrize("return_path", [False, True])
def test_silent_data_loss_is_not_silent(tmp_path: Path, return_path: bool) -> None:
    """With its default parameters this QEMU sends a part of the disk; with a return path it even learns that."""
    source = make_disk(tmp_path, "drive0", 64 * MiB)
    targets = (f"drive0={tmp_path}/copy.raw", "--size", "64M")
    with (
        command.receiver(f"unix:{tmp_path}/s", *targets) as receiver,
        Qemu(*drive(source), folder=tmp_path) as vm,
    ):
        vm.set_capabilities(return_path=return_path)
        vm.migrate(receiver.uri)
        status = vm.wait_migration()
        outcome = receiver.finish()
    if outcome.exit_code == 0 and (tmp_path / "copy.raw").read_bytes() == source.read_bytes():
        assert real_qemu.version_tuple() < (7, 2), "this QEMU is known to lose blocks"
        pytest.skip("this QEMU does not lose blocks")
    assert status == ("failed" if return_path else "completed")
    assert outcome.exit_code == 3
    assert "never came" in outcome.stderr
    assert "downtime-limit" in outcome.stderr
    assert not (tmp_path / "copy.raw").exists()


def test_blockdev_without_names(tmp_path: Path) -> None:
    """Two devices without names: refused, unless somebody says which is which; never mixed."""
    image = real_qemu.create_qcow2(tmp_path / "a.qcow2", real_qemu.pattern(2 * MiB, seed="a"))
    nodes = ["-blockdev", f"driver=file,node-name=file0,filename={image}"]
    nodes += ["-blockdev", "driver=qcow2,node-name=node0,file=file0", "-device", "virtio-blk-pci,drive=node0"]
    with (
        command.receiver(f"unix:{tmp_path}/s", f"drive0={tmp_path}/copy.raw") as receiver,
        start(tmp_path, *nodes) as vm,
    ):
        vm.migrate(receiver.uri)
        outcome = receiver.finish()
        vm.wait_migration()
    assert outcome.exit_code == 1
    assert "-blockdev" in outcome.stderr
    assert "--map 0=" in outcome.stderr


def test_one_nameless_disk_can_be_mapped(tmp_path: Path) -> None:
    source = make_disk(tmp_path, "a", 3 * MiB)
    node = f"driver=raw,node-name=node0,file.driver=file,file.filename={source}"
    with (
        command.receiver(f"unix:{tmp_path}/s", "--map", f"0={tmp_path}/copy.raw", "--size", "3M") as receiver,
        start(tmp_path, "-blockdev", node, "-device", "virtio-blk-pci,drive=node0") as vm,
    ):
        vm.migrate(receiver.uri)
        assert vm.wait_migration() == "completed"
        outcome = receiver.finish()
        vm.quit()
    assert outcome.exit_code == 0, outcome.stderr
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


def test_target_too_small(tmp_path: Path) -> None:
    source = make_disk(tmp_path, "drive0", 3 * MiB)
    target = make_disk(tmp_path, "small", 2 * MiB)
    before = target.read_bytes()
    with (
        command.receiver(f"unix:{tmp_path}/s", f"drive0={target}") as receiver,
        start(tmp_path, *drive(source)) as vm,
    ):
        vm.set_capabilities(return_path=True)
        vm.migrate(receiver.uri)
        assert vm.wait_migration() == "failed"
        outcome = receiver.finish()
    assert outcome.exit_code == 1
    assert f"its target '{target}' has 2097152 bytes, and a block came that starts at offset 2097152" in outcome.stderr
    after = target.read_bytes()  # QEMU sends blocks as their reads end, in any order
    left = "is as it was: nothing was written to it" if after == before else "holds a part of the disk"
    assert f"'{target}' {left}" in outcome.stderr
    assert len(after) == 2 * MiB


def test_exec_into_stdin(tmp_path: Path) -> None:
    source = make_disk(tmp_path, "drive0", 3 * MiB)
    words = command.command("receive", "--json", "-", f"drive0={tmp_path}/copy.raw", "--size", "3M")
    uri = f"exec:PYTHONPATH={command.ROOT} {shlex.join(words)} > {tmp_path}/out 2>&1; echo $? > {tmp_path}/exit"
    with start(tmp_path, *drive(source)) as vm:
        vm.migrate(uri)
        assert vm.wait_migration() == "completed"
        vm.wait_until(lambda: (tmp_path / "exit").exists() and (tmp_path / "exit").read_text() != "", "blkmig's end")
        vm.quit()
    assert (tmp_path / "exit").read_text() == "0\n", (tmp_path / "out").read_text()
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


def test_stored_stream_through_every_kind_of_file(tmp_path: Path) -> None:
    """One captured stream, received from file:, exec:, fd: and stdin, into a folder."""
    source = make_disk(tmp_path, "drive0", 3 * MiB)
    stream = tmp_path / "stream"
    with start(tmp_path, *drive(source)) as vm:
        vm.migrate(real_qemu.capture(stream))
        assert vm.wait_migration() == "completed"
        real_qemu.captured(vm, stream)
        vm.quit()
    for number, uri in enumerate((f"file:{stream}", f"exec:cat {stream}", "-", "fd:0")):
        with stream.open("rb") as stdin:
            process = command.start("receive", "--progress=none", uri, "--into", tmp_path / str(number), stdin=stdin)
            outcome = command.finish(process)
        assert outcome.exit_code == 0, outcome.stderr
        assert (tmp_path / str(number) / "drive0.raw").read_bytes() == source.read_bytes()


def test_source_killed_half_way(tmp_path: Path) -> None:
    source = make_disk(tmp_path, "drive0", 48 * MiB)
    with command.receiver("tcp:127.0.0.1:0", f"drive0={tmp_path}/copy.raw") as receiver:
        with start(tmp_path, *drive(source)) as vm:
            vm.set_parameters(max_bandwidth=8 * MiB)
            vm.migrate(receiver.uri)
            vm.wait_until(lambda: has_sent_something(vm), "the first bytes")
        outcome = receiver.finish()
    assert outcome.exit_code == 5, outcome.stderr
