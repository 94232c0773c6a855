# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole migrations of a storage daemon's disks under a writer: stress, convergence, and all that can be killed."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lab
import peers
import pytest
import storage_daemon
from storage_daemon import MiB, StorageDaemon, image_options

import blkmig
from blkmig import errors, qemu
from blkmig.files import partial
from blkmig.qemu import qmp
from blkmig.sources import open_disks

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")

SIZE = 12 * MiB + 512 * 5


def make_image(folder: Path, kind: str, seed: int, name: str = "disk0") -> Path:
    """Make a raw image, or a qcow2 one on a raw base, with some data."""
    rng = random.Random(seed)
    base = lab.sparse_file(folder / f"{name}.raw", lab.random_disk(rng, SIZE))
    if kind == "raw":
        return base
    top = folder / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top], check=True)
    return top


def some_rounds(count: int) -> lab.Drive:
    """Return what iterates so often, then does the last pass, whatever is pending."""

    def drive(outgoing: blkmig.OutgoingMigration) -> None:
        for _ in range(count):
            outgoing.iterate()
        outgoing.complete()

    return drive


@contextlib.contextmanager
def opened(daemon: StorageDaemon, options: str = "") -> Iterator[list[blkmig.BlockBackend]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(disk) for disk in open_disks(daemon.address + options)]
    assert daemon.leftovers() == []


@contextlib.contextmanager
def live(folder: Path, seed: int) -> Iterator[tuple[StorageDaemon, storage_daemon.Writer]]:
    """Run a daemon with a raw disk that somebody writes."""
    with (
        StorageDaemon(folder, *image_options(make_image(folder, "raw", seed))) as daemon,
        storage_daemon.writing([(daemon.uri("disk0"), SIZE)], seed=seed) as [writer],
    ):
        yield daemon, writer


# -- equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), storage_daemon.WAYS_TO_READ)
@pytest.mark.parametrize("seed", range(10))
def test_a_disk_moves_under_a_writer(folder: Path, kind: str, options: str, seed: int) -> None:
    """With digests and without: then the pages of a raw image's file pass from end to end."""
    image, target = make_image(folder, kind, seed), folder / "target.raw"
    parameters = {"reading": ["inline", "parallel"][seed % 2], "digests": seed % 3 == 0, "writers_after": "refuse"}
    with StorageDaemon(folder, *image_options(image)) as daemon:
        with storage_daemon.writing([(daemon.uri("disk0"), SIZE)], seed=seed), opened(daemon, options) as disks:
            lab.migrate(folder, "unix", disks, {"disk0": target}, drive=some_rounds(seed % 4), **parameters)
        daemon.quit()
    storage_daemon.compare(image, target)


def test_two_disks_move_at_once(folder: Path) -> None:
    images = [make_image(folder, "raw", 1, "one"), make_image(folder, "qcow2", 2, "two")]
    targets = {name: folder / f"{name}.copy" for name in ("one", "two")}
    with StorageDaemon(folder, *image_options(images[0], "one"), *image_options(images[1], "two")) as daemon:
        with storage_daemon.writing([(daemon.uri(name), SIZE) for name in targets], seed=3), opened(daemon) as disks:
            lab.migrate(folder, "unix", disks, targets, drive=some_rounds(4), writers_after="refuse")
        daemon.quit()
    for image, target in zip(images, targets.values(), strict=True):
        storage_daemon.compare(image, target)


def test_only_the_top_layer_moves_where_the_base_is_known(folder: Path) -> None:
    image, target = make_image(folder, "qcow2", 4), folder / "target.raw"
    target.write_bytes((folder / "disk0.raw").read_bytes())
    with StorageDaemon(folder, *image_options(image)) as daemon:
        client = storage_daemon.QemuIo(daemon.uri("disk0"))
        assert client.run("write -P 5 5M 100k")
        assert client.run("write -z 9M 64k")
        client.close()
        with opened(daemon) as disks:
            common = {"shared_base": True, "receive": {"incremental": True}}
            sent, _ = lab.migrate(folder, "unix", disks, {"disk0": target}, writers_after="refuse", **common)
            assert sent.blocks == 2
        daemon.quit()
    storage_daemon.compare(image, target)


@pytest.mark.parametrize("seed", range(6))
def test_the_base_is_looked_at_while_somebody_writes(folder: Path, seed: int) -> None:
    """A13: what the writer allocates meanwhile is no part of the base, so the right base is never taken for another."""
    image, target = make_image(folder, "qcow2", seed), folder / "target.raw"
    target.write_bytes((folder / "disk0.raw").read_bytes())
    with StorageDaemon(folder, *image_options(image)) as daemon:
        with storage_daemon.writing([(daemon.uri("disk0"), SIZE)], seed=seed), opened(daemon) as disks:
            common = {"shared_base": True, "digests": True, "receive": {"incremental": True, "verify": True}}
            drive = some_rounds(3)
            _, received = lab.migrate(folder, "unix", disks, {"disk0": target}, drive=drive, **common)
            assert received.disks["disk0"].verified
        daemon.quit()


def test_another_base_is_found_before_anything_is_written(folder: Path) -> None:
    """A13: of an image that a QEMU has open, by its allocation depths."""
    image, target = make_image(folder, "qcow2", 4), folder / "target.raw"
    other = bytearray((folder / "disk0.raw").read_bytes())
    other[11 * MiB] ^= 1
    target.write_bytes(other)
    with StorageDaemon(folder, *image_options(image)) as daemon:
        client = storage_daemon.QemuIo(daemon.uri("disk0"))
        assert client.run("write -P 5 5M 100k")
        client.close()
        receiver = lab.Receiver(f"unix:{folder}/s", {"disk0": target}, incremental=True, verify=True)
        with opened(daemon) as disks, pytest.raises(errors.WrongBase):
            blkmig.send(disks, receiver.uri, shared_base=True, digests=True)
        with pytest.raises(errors.WrongBase, match=r"disk0.* nothing was written"):
            receiver.result()
        daemon.quit()
    assert target.read_bytes() == other


# -- convergence -----------------------------------------------------------------------------------------------------


def test_a_writer_that_is_too_quick_is_slowed_down(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    image, target = make_image(folder, "raw", 6), folder / "target.raw"
    with StorageDaemon(folder, *image_options(image, throttled=True)) as daemon:
        with storage_daemon.writing([(daemon.uri("disk0"), SIZE)], seed=6), opened(daemon) as disks:

            def drive(outgoing: blkmig.OutgoingMigration) -> None:
                while "slowed" not in caplog.text:
                    outgoing.iterate()
                group = {"path": "/objects/disk0-limit", "property": "limits"}
                throttled = disks[0].session.qmp.execute("qom-get", group)  # type: ignore[attr-defined]
                assert throttled["bps-write"] > 0
                outgoing.complete()

            # By then more is dirty than the link carries in a second, the least bound of a pause: let it take longer.
            pause = {"downtime_limit": 0.001, "downtime_factor": 60_000}
            common = {"auto_converge": True, "max_bandwidth": 8 * MiB, **pause}
            lab.migrate(folder, "unix", disks, {"disk0": target}, drive=drive, writers_after="refuse", **common)
        assert daemon.ask("qom-get", path="/objects/disk0-limit", property="limits")["bps-write"] == 0
        daemon.quit()
    storage_daemon.compare(image, target)


def test_a_migration_that_does_not_converge_leaves_everything_as_it_was(folder: Path) -> None:
    limits = {"max_rounds": 2, "downtime_limit": 0, "max_bandwidth": 64 * MiB}
    with live(folder, 7) as (daemon, writer):
        with opened(daemon) as disks, pytest.raises(errors.NotConverged):
            lab.migrate(folder, "unix", disks, {"disk0": folder / "target.raw"}, **limits)
        writer.wait_for_more(3)


# -- things that are killed ------------------------------------------------------------------------------------------

SEND = [sys.executable, "-m", "blkmig", "send", "--progress=none", "--max-bandwidth=20M", "--downtime-limit=0"]
SEND.append("--reconnect=0")  # what is killed does not come back


def sending(daemon: StorageDaemon, uri: str) -> subprocess.Popen[bytes]:
    """Start the command line that sends the daemon's disks."""
    return subprocess.Popen(
        [*SEND, daemon.address, uri], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def receiver(folder: Path) -> lab.Receiver:
    return lab.Receiver(f"unix:{folder}/link", {"disk0": folder / "target.raw"})


@pytest.mark.parametrize("seed", range(4))
def test_a_sender_that_is_killed_leaves_the_source_running(folder: Path, seed: int) -> None:
    with live(folder, seed) as (daemon, writer):
        incoming = receiver(folder)
        process = sending(daemon, incoming.uri)
        wait_for_growth(folder / "target.raw", random.Random(seed).randrange(1, 6))
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        with pytest.raises(errors.MigrationError):
            incoming.result()
        writer.wait_for_more(3)
        qemu.cleanup(str(daemon.qmp_path))
        assert daemon.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sender_that_is_interrupted_cleans_up(folder: Path, number: signal.Signals) -> None:
    with live(folder, 1) as (daemon, writer):
        incoming = receiver(folder)
        with storage_daemon.interruptible():
            process = sending(daemon, incoming.uri)
        wait_for_growth(folder / "target.raw", 2)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert daemon.leftovers() == []
        writer.wait_for_more(3)
        with pytest.raises(errors.MigrationError):
            incoming.result()


def wait_for_growth(path: Path, blocks: int) -> None:
    """Return when so many MiB are on the target's disk, which is not called so yet."""
    path = path.with_name(partial.partial_name(path.name))
    deadline = threading.Event()
    timer = threading.Timer(30, deadline.set)
    timer.start()
    while not (path.exists() and path.stat().st_blocks * 512 >= blocks * MiB):
        assert not deadline.is_set(), "nothing arrives"
    timer.cancel()


@pytest.mark.parametrize("seed", range(4))
def test_a_daemon_that_is_killed_is_an_error(folder: Path, seed: int) -> None:
    with StorageDaemon(folder, *image_options(make_image(folder, "raw", seed))) as daemon:

        def drive(outgoing: blkmig.OutgoingMigration) -> None:
            killer = threading.Timer(random.Random(seed).random() * 0.2, daemon.process.kill)
            killer.start()
            while killer.is_alive():
                outgoing.iterate()
            daemon.process.wait(30)
            outgoing.complete()

        with contextlib.ExitStack() as stack:
            disks = [stack.enter_context(disk) for disk in open_disks(daemon.address)]
            with pytest.raises(errors.DeviceError):
                lab.migrate(folder, "unix", disks, {"disk0": folder / "target.raw"}, drive=drive, downtime_limit=0)


@pytest.mark.parametrize("when", [0, 1, 3])
def test_an_nbd_server_that_is_stopped_is_an_error(folder: Path, when: int) -> None:
    second = ["--chardev", f"socket,id=second,path={folder}/second,server=on,wait=off", "--monitor", "chardev=second"]
    with StorageDaemon(folder, *second, *image_options(make_image(folder, "raw", when))) as daemon:

        def drive(outgoing: blkmig.OutgoingMigration) -> None:
            for _ in range(when):
                outgoing.iterate()
            other = qmp.QmpConnection(folder / "second")
            other.execute("nbd-server-stop")
            other.close()
            outgoing.iterate()
            outgoing.complete()

        with opened(daemon) as disks, pytest.raises(errors.DeviceError):
            lab.migrate(folder, "unix", disks, {"disk0": folder / "target.raw"}, drive=drive, downtime_limit=0)
        assert daemon.process.poll() is None


@pytest.mark.parametrize("seed", range(3))
def test_a_receiver_that_goes_away_leaves_the_source_running(folder: Path, seed: int) -> None:
    with live(folder, seed) as (daemon, writer):
        command = [sys.executable, "-m", "blkmig", "receive", "--progress=none", f"unix:{folder}/link"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        incoming = subprocess.Popen([*command, f"disk0={folder}/target.raw"], **quiet)  # type: ignore[call-overload]
        process = None
        try:
            wait_for(folder / "link")
            process = sending(daemon, f"unix:{folder}/link")
            wait_for_growth(folder / "target.raw", 1 + seed)
        finally:
            incoming.kill()
            incoming.wait(30)
        assert process.wait(30) == errors.ChannelError.exit_code
        assert daemon.leftovers() == []
        writer.wait_for_more(3)


def wait_for(path: Path) -> None:
    """Return when the socket is there."""
    deadline = threading.Event()
    timer = threading.Timer(30, deadline.set)
    timer.start()
    while not path.exists():
        assert not deadline.is_set(), f"{path} does not come"
    timer.cancel()
