# SPDX-License-Identifier: GPL-2.0-or-later
"""Images served by a storage daemon that blkmig starts: written by an NBD client, and sent as its line says."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
import peers
import pytest
import storage_daemon
from processes import child_called
from storage_daemon import MiB

from blkmig import errors
from blkmig.sources import opening as open_disks
from blkmig.sources import serve

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")

SIZE = 4 * MiB + 512


@pytest.fixture
def folder() -> Iterator[Path]:
    with storage_daemon.private_folder() as path:
        yield path


def served(path: Path, name: str = "vda", options: str = "") -> serve.ServedDisk:
    return serve.ServedDisk(name, open_disks.describe(f"{path}{options}"))


def raw_image(folder: Path, name: str = "disk.raw") -> Path:
    path = folder / name
    path.open("wb").truncate(SIZE)
    return path


def write(uri: str, command: str) -> bool:
    client = storage_daemon.QemuIo(uri)
    try:
        return client.run(command)
    finally:
        client.close()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_served_disk_moves_as_its_line_says(folder: Path, kind: str) -> None:
    image, target = folder / f"disk,1.{kind}", folder / "target.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, image, str(SIZE)], check=True)
    disk = serve.ServedDisk("vda", open_disks.FileDescription(path=str(image), format=kind))
    with serve.StorageDaemon([disk], f"unix:{folder}/n,bd") as daemon:
        words = shlex.split(daemon.send_line())
        assert words[:2] == ["blkmig", "send"]
        with storage_daemon.writing([(daemon.export_uri(disk), SIZE)], seed=1) as [writer]:
            writer.wait_for_more(3)
            with open_disks.open_disks(words[2])[0] as source:
                assert source.name == "vda"
                assert source.throttle_writers(0.5)
                source.throttle_writers(1.0)
                # A write that the throttle has queued may be in flight for seconds yet, and the pause waits for it.
                options: dict[str, Any] = {"writers_after": "refuse", "downtime_factor": 100}
                lab.migrate(folder, "unix", [source], {"vda": target}, drive=lab_drive, **options)
    storage_daemon.compare(image, target)
    assert not list(folder.glob("n,bd*"))


def lab_drive(outgoing: object) -> None:
    """Iterate a little, then do the last pass, whatever is pending."""
    for _ in range(3):
        outgoing.iterate()  # type: ignore[attr-defined]
    outgoing.complete()  # type: ignore[attr-defined]


def test_several_disks_on_tcp(folder: Path) -> None:
    disks = [served(raw_image(folder, "one.raw"), "one"), served(raw_image(folder, "two.raw"), "two")]
    with serve.StorageDaemon(disks, "tcp:127.0.0.1:0", qmp=f"{folder}/qmp") as daemon:
        for disk in disks:
            assert daemon.export_uri(disk).startswith("nbd://127.0.0.1:")
            assert write(daemon.export_uri(disk), "write -P 1 1M 64k")
        opened = open_disks.open_disks(shlex.split(daemon.send_line())[2])
        assert [disk.name for disk in opened] == ["one", "two"]
        for source in opened:
            source.close()
    assert (folder / "one.raw").read_bytes()[MiB : MiB + 65536] == b"\1" * 65536


def test_discards_reach_the_image(folder: Path) -> None:
    image = raw_image(folder)
    with serve.StorageDaemon([served(image)], f"unix:{folder}/nbd") as daemon:
        uri = daemon.export_uri(daemon.disks[0])
        assert write(uri, "write -P 1 0 2M")
        assert write(uri, "discard 0 1M")
    assert image.stat().st_blocks * 512 < 2 * MiB


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(folder: Path) -> None:
    for name in ("nbd", "nbd.qmp"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{folder}/{name}")
    with serve.StorageDaemon([served(raw_image(folder))], f"unix:{folder}/nbd") as daemon:
        assert write(daemon.export_uri(daemon.disks[0]), "write 0 512")
        with pytest.raises(errors.DeviceError, match="in use"):
            serve.StorageDaemon([served(raw_image(folder, "other"))], f"unix:{folder}/nbd")
        assert write(daemon.export_uri(daemon.disks[0]), "write 0 512")


def test_an_image_that_is_in_use(folder: Path) -> None:
    image = raw_image(folder)
    with serve.StorageDaemon([served(image)], f"unix:{folder}/nbd"):
        with pytest.raises(errors.DeviceBusy, match="permission"):
            serve.StorageDaemon([served(image)], f"unix:{folder}/nbd2")
        assert not list(folder.glob("nbd2*"))


def test_images_that_cannot_be_served(folder: Path) -> None:
    nbd = f"unix:{folder}/nbd"
    with pytest.raises(errors.DeviceError, match="No such file"):
        serve.StorageDaemon([served(folder / "missing")], nbd)
    qcow2 = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, "1M"], check=True)
    with pytest.raises(errors.FormatError, match="qcow2"):
        serve.StorageDaemon([serve.ServedDisk("vda", open_disks.FileDescription(path=str(qcow2)))], nbd)
    raw = serve.ServedDisk("vda", open_disks.FileDescription(path=str(raw_image(folder)), format="qcow2"))
    with pytest.raises(errors.DeviceError, match="not in qcow2 format"):
        serve.StorageDaemon([raw], nbd)
    assert not list(folder.glob("nbd*"))


def test_an_image_is_served_once(folder: Path) -> None:
    """A4: what is written to one of two disks would not be known of the other, and be missing from its copy."""
    raw, link = raw_image(folder), folder / "link.raw"
    link.symlink_to(raw)
    for one, other, why in (("a", "b", "are the same file"), ("a", "a", "two disks are called 'a'")):
        disks = [
            serve.ServedDisk(name, open_disks.FileDescription(path=str(path)))
            for name, path in ((one, raw), (other, link))
        ]
        with pytest.raises(errors.ParameterError, match=why):
            serve.StorageDaemon(disks, f"unix:{folder}/nbd")
    assert not list(folder.glob("nbd*"))


def test_what_took_the_place_of_a_socket_stays(folder: Path) -> None:
    """Of that for QMP, the storage daemon itself removes whatever has the name."""
    with serve.StorageDaemon([served(raw_image(folder))], f"unix:{folder}/nbd"):
        (folder / "nbd").unlink()
        (folder / "nbd").write_text("mine")
    assert (folder / "nbd").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "1st", "a b", "x" * 25, "ä"])
def test_names_that_qemu_would_not_take(name: str) -> None:
    with pytest.raises(errors.ParameterError, match="NAME=IMAGE"):
        serve.ServedDisk(name, open_disks.FileDescription(path="x"))


@pytest.mark.parametrize("where", ["", "nbd.sock", "tcp:", "tcp:host", "udp:h:1", "unix:"])
def test_places_where_nobody_can_listen(folder: Path, where: str) -> None:
    with pytest.raises(errors.ParameterError, match="listen"):
        serve.StorageDaemon([served(raw_image(folder))], where, qmp=f"{folder}/qmp")
    with pytest.raises(errors.ParameterError, match="--qmp"):
        serve.StorageDaemon([served(raw_image(folder))], "tcp::0")


def test_a_daemon_that_ends_is_an_error(folder: Path) -> None:
    with serve.StorageDaemon([served(raw_image(folder))], f"unix:{folder}/nbd") as daemon:
        child_called("qemu-storage").kill()
        with pytest.raises(errors.DeviceError, match="ended with status -9"):
            daemon.wait()
    daemon.close()
