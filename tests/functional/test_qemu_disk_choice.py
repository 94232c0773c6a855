# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks of a QEMU may be sent, and what a killed run left there."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

import peers
import pytest
from qemu_disks import SIZE, make_image, opened, write
from qemu_disks import daemon as daemon
from qemu_disks import folder as folder
from storage_daemon import MiB, StorageDaemon, image_options

from blkmig import _core, errors, qemu
from blkmig.qemu import discover, leftovers, qmp

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")


def test_a_disk_that_a_block_job_writes_is_refused(folder: Path) -> None:
    image, origin = make_image(folder, "raw"), make_image(folder, "raw", "origin")
    options = image_options(image)[:-2] + image_options(origin, "origin")
    with StorageDaemon(folder, *options) as daemon:
        mirror = {"job-id": "job", "device": "origin", "target": "disk0", "sync": "full"}
        daemon.ask("blockdev-mirror", **mirror, filter_node_name="filter")
        with pytest.raises(errors.DeviceError, match=r"a block job perhaps|Permission conflict"):
            qemu.open_qemu(f"{daemon.address},node=disk0")
        assert daemon.leftovers() == []


def test_a_server_that_runs_must_be_named(daemon: StorageDaemon) -> None:
    with pytest.raises(errors.DeviceError, match="nbd=unix:PATH"):
        qemu.open_qemu(f"qemu:{daemon.qmp_path}")
    assert daemon.leftovers() == []


def test_a_server_is_started_where_none_runs(folder: Path) -> None:
    options = image_options(make_image(folder, "raw"))[:-2]
    with StorageDaemon(folder, *options, nbd_server=False) as daemon:
        with qemu.open_qemu(f"qemu:{daemon.qmp_path}")[0] as disk:
            assert disk.size == SIZE // 512 * 512 + 512 * (SIZE % 512 > 0)
            assert len(list(folder.glob("qmp.blkmig-*.nbd"))) == 1
        assert daemon.leftovers() == []
        with pytest.raises(qmp.QmpError, match="not running"):
            daemon.ask("nbd-server-stop")


def test_a_second_client_is_told_what_to_do(daemon: StorageDaemon) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(daemon.qmp_path))
        assert other.recv(1)
        with pytest.raises(qmp.QmpTimeout, match="second one, with -qmp"):
            qmp.QmpConnection(daemon.qmp_path, connect_timeout=0.3)


def test_a_daemon_that_is_killed(daemon: StorageDaemon) -> None:
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(qemu.open_qemu(daemon.address)[0])
        bitmap = disk.create_dirty_bitmap(MiB)
        daemon.process.kill()
        daemon.process.wait(30)
        with pytest.raises(errors.DeviceError):
            disk.sync_dirty()
        with pytest.raises(errors.DeviceError):
            disk.read_block(_core.BlockBuffer(), 0, 512)
        with pytest.raises(errors.DeviceError):
            disk.hold_writers()
        disk.release_dirty_bitmap(bitmap)


def test_iothreads_are_refused_without_force(folder: Path) -> None:
    options = ["--object", "iothread,id=io0", *image_options(make_image(folder, "raw"))]
    with StorageDaemon(folder, *options) as daemon:
        version = tuple(daemon.ask("query-version")["qemu"][key] for key in ("major", "minor"))
        if version >= (9, 0):
            pytest.skip("this QEMU has no trouble with iothreads")
        with pytest.raises(errors.DeviceError, match="--force"):
            qemu.open_qemu(daemon.address)
        with qemu.open_qemu(daemon.address, force=True)[0] as disk:
            assert disk.name == "disk0"


def test_disks_are_chosen_by_node(folder: Path) -> None:
    images = [make_image(folder, "raw", name) for name in ("one", "two")]
    options = image_options(images[0], "one") + image_options(images[1], "two", throttled=True)
    with StorageDaemon(folder, *options) as daemon:
        for wanted, found in (("two-limit", "two"), ("two", "two"), ("one", "one")):
            with opened(daemon, f",node={wanted}") as [disk]:
                assert disk.name == found
        with pytest.raises(errors.DeviceError, match=r"one \(node one\)|has no node"):
            qemu.open_qemu(daemon.address + ",node=three")
        with pytest.raises(errors.DeviceError, match="has no device"):
            qemu.open_qemu(daemon.address + ",device=one")
        with pytest.raises(errors.ParameterError, match="choose"):
            qemu.open_qemu(daemon.address, name="both")
        [disk] = qemu.open_qemu(daemon.address + ",node=one", name="vda")
        with disk:
            assert disk.name == "vda"
        assert daemon.leftovers() == []


def test_a_qemu_that_does_not_tell_its_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = discover.check_version
    monkeypatch.setattr(discover, "check_version", lambda found: check(found) - {"x-debug-query-block-graph"})
    with StorageDaemon(folder, *image_options(make_image(folder, "raw"))) as daemon:
        with opened(daemon) as [disk]:
            bitmap = disk.create_dirty_bitmap(MiB)
            assert write(daemon, "write -P 1 1M 64k", "disk0")
            disk.sync_dirty()
            assert bitmap.next_dirty(0) == 1
            disk.hold_writers()
            assert not write(daemon, "write 0 512", "disk0")
            disk.release_writers()
        assert write(daemon, "write 0 512", "disk0")


def test_a_qemu_that_is_too_old(daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = qmp.QmpConnection.execute

    def without_exports(self: qmp.QmpConnection, command: str, *arguments: object, **options: object) -> object:
        found = execute(self, command, *arguments, **options)  # type: ignore[arg-type]
        return [{"name": "query-block"}] if command == "query-commands" else found

    monkeypatch.setattr(qmp.QmpConnection, "execute", without_exports)
    with pytest.raises(errors.DeviceError, match="migrate -b"):
        qemu.open_qemu(daemon.address)


KILLED = """
import os, signal, sys
from blkmig import qemu
disk = qemu.open_qemu(sys.argv[1])[0]
disk.create_dirty_bitmap(1 << 20)
disk.session.own.add_export(disk.session.own.prefix + "more", "disk0")
if "throttle" in sys.argv:
    disk.throttle_writers(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_limits_that_a_killed_run_changed_are_put_back(daemon: StorageDaemon) -> None:
    users = {"bps-write": 700_000_000, "bps-write-max": 800_000_000, "bps-write-max-length": 2, "iops-total": 99_999}
    group = {"path": "/objects/disk0-limit", "property": "limits"}
    daemon.ask("qom-set", **group, value=users)
    before = daemon.ask("qom-get", **group)
    subprocess.run([sys.executable, "-c", KILLED, daemon.address, "throttle"], check=False)
    assert daemon.ask("qom-get", **group)["bps-write"] < users["bps-write"]
    assert any("throttle" in what for what in qemu.cleanup(str(daemon.qmp_path)))
    assert daemon.ask("qom-get", **group) == before
    assert daemon.leftovers() == []


@pytest.mark.parametrize("nbd_server", [True, False])
@pytest.mark.parametrize("how", ["cleanup", "next run"])
def test_leftovers_of_a_killed_run_are_removed(folder: Path, nbd_server: bool, how: str) -> None:
    options = image_options(make_image(folder, "raw"))
    with StorageDaemon(folder, *(options if nbd_server else options[:-2]), nbd_server=nbd_server) as daemon:
        address = daemon.address if nbd_server else f"qemu:{daemon.qmp_path}"
        run = subprocess.run([sys.executable, "-c", KILLED, address], check=False)
        assert run.returncode == -signal.SIGKILL
        assert len(daemon.leftovers()) == 4  # the server, or else the mark of an export that others write
        if how == "cleanup":
            removed = qemu.cleanup(f"qemu:{daemon.qmp_path}")
            assert len(removed) == (3 if nbd_server else 4)
        else:
            qemu.open_qemu(address)[0].close()
        assert daemon.leftovers() == []
        assert qemu.cleanup(str(daemon.qmp_path)) == []


def test_cleanup_leaves_a_run_that_is_alive_alone(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        assert leftovers.remove(disk.session.qmp).removed == []
        disk.sync_dirty()
