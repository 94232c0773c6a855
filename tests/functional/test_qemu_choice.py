# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks of a QEMU are meant: several that share a monitor (E7), read-only ones (E6), nodes below others (E16)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import command
import peers
import pytest
import real_qemu
import storage_daemon
from storage_daemon import MiB, StorageDaemon

import blkmig
from blkmig import errors, qemu, sources
from blkmig.qemu import address

peers.require("qemu-storage-daemon")

SIZE = MiB


@pytest.fixture
def folder() -> Iterator[Path]:
    with storage_daemon.private_folder() as path:
        yield path


def image(folder: Path, name: str, *, read_only: bool = False) -> list[str]:
    path = folder / f"{name}.raw"
    path.write_bytes(os.urandom(SIZE))
    how = "on" if read_only else "off"
    return [
        "--blockdev",
        f"raw,node-name={name},read-only={how},file.driver=file,file.filename={path},file.read-only={how}",
    ]


@pytest.fixture
def daemon(folder: Path) -> Iterator[StorageDaemon]:
    """Run a daemon with the disks vda and vdb, and with cd, which is read-only."""
    with StorageDaemon(
        folder, *image(folder, "vda"), *image(folder, "vdb"), *image(folder, "cd", read_only=True)
    ) as running:
        yield running
        assert running.leftovers() == []


def receive(stream: Path, into: Path) -> dict[str, bytes]:
    blkmig.receive(f"file:{stream}", into=into)
    return {path.stem: path.read_bytes() for path in into.iterdir()}


# -- several disks of one monitor ------------------------------------------------------------------------------------


def test_disks_of_one_monitor_share_it_and_have_names_of_their_own(daemon: StorageDaemon, folder: Path) -> None:
    """E7, word for word but for the socket."""
    words = [f"one={daemon.address},node=vda", f"two={daemon.address},node=vdb"]
    done = command.run("send", *words, f"file:{folder}/s")
    assert done.exit_code == 0, done.stderr
    copies = receive(folder / "s", folder / "into")
    assert copies == {"one": (folder / "vda.raw").read_bytes(), "two": (folder / "vdb.raw").read_bytes()}


def test_another_path_to_the_same_monitor(daemon: StorageDaemon, folder: Path) -> None:
    (folder / "link").symlink_to(daemon.qmp_path)
    texts = [("one", f"{daemon.address},node=vda"), (None, f"qemu:{folder}/link,node=vdb")]
    [[one], [two]] = sources.open_sources(texts)
    with one, two:
        assert isinstance(one, qemu.QemuBackend)
        assert isinstance(two, qemu.QemuBackend)
        assert one.session is two.session
        assert (one.name, two.name) == ("one", "vdb")


def test_one_is_named_and_the_others_follow(daemon: StorageDaemon) -> None:
    [rest, [one]] = sources.open_sources([(None, daemon.address), ("one", f"{daemon.address},node=vdb")])
    with contextlib.ExitStack() as stack:
        for each in [*rest, one]:
            stack.enter_context(each)
        assert [each.name for each in rest] == ["vda"]
        assert one.name == "one"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (",node=vda", ",node=vda", "two sources name the disk vda"),
        ("", "", "all of its disks are named by other sources"),
        (",node=vda", ",node=vdc", "has no node 'vdc'"),
    ],
)
def test_sources_that_are_no_choice(daemon: StorageDaemon, first: str, second: str, message: str) -> None:
    texts = [(None, daemon.address + first), (None, daemon.address + second)]
    with pytest.raises(errors.MigrationError, match=message):
        sources.open_sources(texts)


def test_two_servers_for_one_qemu() -> None:
    texts = ["qemu:/q,device=a,nbd=unix:/one", "qemu:/q,device=b,nbd=unix:/two"]
    with pytest.raises(errors.ParameterError, match="a QEMU has one NBD server"):
        address.merge([address.parse(text) for text in texts])


def test_a_call_with_two_addresses_of_one_monitor(daemon: StorageDaemon, folder: Path) -> None:
    blkmig.send([f"{daemon.address},node=vda", f"{daemon.address},node=vdb"], f"file:{folder}/s")
    assert set(receive(folder / "s", folder / "into")) == {"vda", "vdb"}


# -- read-only disks -------------------------------------------------------------------------------------------------


def test_a_read_only_disk_that_is_named_is_sent(daemon: StorageDaemon, folder: Path) -> None:
    """E6."""
    done = command.run("send", f"{daemon.address},node=cd,node=vda", f"file:{folder}/s")
    assert done.exit_code == 0, done.stderr
    assert "not sent" not in done.stderr
    copies = receive(folder / "s", folder / "into")
    assert copies == {name: (folder / f"{name}.raw").read_bytes() for name in ("cd", "vda")}


def test_a_read_only_disk_that_is_not_named_is_left_out_and_said(daemon: StorageDaemon, folder: Path) -> None:
    done = command.run("send", daemon.address, f"file:{folder}/s")
    assert done.exit_code == 0, done.stderr
    assert "disk 'cd' is read-only and not sent; it is if it is named, with node=cd" in done.stderr
    assert set(receive(folder / "s", folder / "into")) == {"vda", "vdb"}


# -- iothreads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def vm(folder: Path) -> Iterator[Path]:
    """Run a VM with vda on top of base, in the main loop, and with vdb on top of other, in an iothread."""
    peers.require("qemu-system-x86_64")
    if real_qemu.version_tuple() >= (9, 0):
        pytest.skip("this QEMU does not mind")
    arguments = ["-object", "iothread,id=io", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    for name, base, more in (("vda", "bb", ""), ("vdb", "other", ",iothread=io")):
        for node in (name, base):
            (folder / f"{node}.raw").write_bytes(os.urandom(SIZE))
        arguments += ["-blockdev", f"raw,node-name={base},file.driver=file,file.filename={folder}/{base}.raw"]
        arguments += ["-blockdev", f"copy-on-read,node-name={name},file={base}"]
        arguments += ["-device", f"virtio-blk-pci,id={name}-dev,drive={name}{more}"]
    with real_qemu.Qemu(*arguments, folder=folder):
        yield folder / "qmp"


def test_a_node_is_judged_by_the_devices_that_stand_on_it(vm: Path) -> None:
    """E16: another disk's iothread is no reason."""
    [opened] = qemu.open_qemu(f"qemu:{vm},node=bb")
    opened.close()
    for refused in ("node=other", "node=vdb", "device=vdb-dev"):
        with pytest.raises(errors.DeviceError, match="runs in an iothread"):
            qemu.open_qemu(f"qemu:{vm},{refused}")
