# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a running qemu-storage-daemon, driven through the contract of a disk by a loop of a few lines."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import storage_daemon
from storage_daemon import MiB, StorageDaemon, image_options

from blkmig import _core, errors, qemu
from blkmig.disk import geometry
from blkmig.qemu import discover, leftovers, objects, qmp, watch

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")

SIZE = 5 * MiB + 7 * 512


@pytest.fixture
def folder() -> Iterator[Path]:
    with storage_daemon.private_folder() as path:
        yield path


def make_image(folder: Path, kind: str, name: str = "disk0", size: int = SIZE, seed: int = 1) -> Path:
    """Make a raw image, or a qcow2 one on a raw base, with some data."""
    rng = random.Random(seed)
    base = folder / f"{name}.raw"
    with base.open("wb") as file:
        file.truncate(size)
        for _ in range(3):
            file.seek(rng.randrange(size - 70_000))
            file.write(rng.randbytes(70_000))
    if kind == "raw":
        return base
    top = folder / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 100k", top], check=True, stdout=subprocess.DEVNULL)
    return top


class Copy:
    """The slowest correct migration there is, over the contract of a disk."""

    def __init__(self, backend: qemu.QemuBackend, target: Path, *, wrong_order: bool = False) -> None:
        self.backend = backend
        self.bitmap = backend.create_dirty_bitmap(MiB)
        self.geometry = geometry.BlockGeometry(backend.size)
        self.wrong_order = wrong_order
        self.between: Callable[[int], object] = lambda block: None
        self.after_round: Callable[[], None] = lambda: None
        self._blk = _core.BlockBuffer()
        self._target = target.open("wb")
        self._target.truncate(backend.size)

    def block(self, block: int) -> None:
        """Copy one block: clear, then read; in the wrong order somebody else clears, later."""
        if not self.wrong_order:
            self.bitmap.take_block(block)
        offset, nbytes = self.geometry.block_range(block)
        self.backend.read_block(self._blk, offset, nbytes)
        self._target.seek(offset)
        self._target.write(self._blk.payload[: self.geometry.clip(offset, nbytes)])
        self._target.flush()
        self.between(block)

    def bulk(self) -> None:
        """Copy all blocks that hold data."""
        for block in range(self.geometry.nblocks):
            offset, nbytes = self.geometry.block_range(block)
            data = self.backend.next_data(offset)
            if data is not None and data[0] < offset + nbytes:
                self.block(block)
        if self.wrong_order:
            self.clear_late(list(range(self.geometry.nblocks)))

    def round(self) -> None:
        """Copy what is dirty."""
        self.backend.sync_dirty()
        self.rest()

    def rest(self) -> None:
        """Copy what is known to be dirty."""
        listed = [block for block in range(self.geometry.nblocks) if self.bitmap.is_dirty(block)]
        for block in listed:
            self.block(block)
        self.after_round()
        if self.wrong_order:
            self.clear_late(listed)

    def clear_late(self, blocks: list[int]) -> None:
        """List after copying, and take what came meanwhile for copied."""
        self.backend.sync_dirty()
        for block in blocks:
            self.bitmap.take_block(block)

    def run(self, rounds: int) -> None:
        """Copy the disk, hold its writers, copy the rest."""
        self.bulk()
        for _ in range(rounds):
            self.round()
        self.backend.hold_writers()
        self.backend.sync_dirty()
        self.between, self.after_round = lambda block: None, lambda: None
        self.rest()
        self.backend.release_writers(refuse=True)
        self._target.close()


@contextlib.contextmanager
def opened(daemon: StorageDaemon, options: str = "") -> Iterator[list[qemu.QemuBackend]]:
    """Open the daemon's disks, and see to it that nothing stays behind in it."""
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(disk) for disk in qemu.open_qemu(daemon.address + options)]
        yield disks
    assert daemon.leftovers() == []


def stress(folder: Path, image: Path, seed: int, *, options: str = "", wrong_order: bool = False) -> None:
    """Copy a disk that is being written; afterwards source and target are equal."""
    target = folder / "target.raw"
    with StorageDaemon(folder, *image_options(image)) as daemon:
        size = SIZE if image.suffix == ".raw" else SIZE // 512 * 512
        uris = [(daemon.uri("disk0"), size)]
        with storage_daemon.writing(uris, seed=seed) as [writer], opened(daemon, options) as [disk]:
            copy = Copy(disk, target, wrong_order=wrong_order)
            copy.after_round = lambda: writer.wait_for_more(3)
            copy.run(rounds=3)
        assert writer.writes
        daemon.quit()
    storage_daemon.compare(image, target)


# -- copies of a live disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), storage_daemon.WAYS_TO_READ)
@pytest.mark.parametrize("seed", range(10))
def test_a_disk_that_is_written_is_copied(folder: Path, kind: str, options: str, seed: int) -> None:
    stress(folder, make_image(folder, kind, seed=seed), seed, options=options)


@pytest.mark.parametrize("options", ["", ",read=nbd"])
def test_the_stress_test_catches_the_wrong_order(options: str) -> None:
    """About every second run does; not one of 30 is a chance of one in 10^8."""
    for seed in range(30):
        with storage_daemon.private_folder() as folder:
            try:
                stress(folder, make_image(folder, "raw"), seed, options=options, wrong_order=True)
            except storage_daemon.ImagesDiffer:
                return
    pytest.fail("30 runs in the wrong order lost nothing: this stress test proves nothing")


@pytest.mark.parametrize("wrong_order", [False, True])
@pytest.mark.parametrize("options", ["", ",read=nbd"])
def test_a_write_right_after_the_read_is_not_lost(folder: Path, wrong_order: bool, options: str) -> None:
    image, target = make_image(folder, "raw"), folder / "target.raw"
    with StorageDaemon(folder, *image_options(image)) as daemon:
        client = storage_daemon.QemuIo(daemon.uri("disk0"))
        with opened(daemon, options) as [disk]:
            copy = Copy(disk, target, wrong_order=wrong_order)
            copy.between = lambda block: client.run(f"write -P 77 {block * MiB} 512") or pytest.fail("no write")
            copy.run(rounds=0)
        client.close()
        daemon.quit()
    if wrong_order:
        with pytest.raises(storage_daemon.ImagesDiffer):
            storage_daemon.compare(image, target)
    else:
        storage_daemon.compare(image, target)


def test_two_disks_are_copied_at_once(folder: Path) -> None:
    images = [make_image(folder, "raw", "one", seed=1), make_image(folder, "qcow2", "two", seed=2)]
    options = [*image_options(images[0], "one"), *image_options(images[1], "two", throttled=True)]
    with StorageDaemon(folder, *options) as daemon:
        uris = [(daemon.uri("one"), SIZE), (daemon.uri("two"), SIZE)]
        with storage_daemon.writing(uris, seed=5), opened(daemon) as disks:
            assert [disk.name for disk in disks] == ["one", "two"]
            copies = [Copy(disk, folder / f"{disk.name}.copy") for disk in disks]
            for copy in copies:
                copy.bulk()
            for _ in range(3):
                for copy in copies:
                    copy.round()
            for copy in copies:
                copy.backend.hold_writers()
            for copy in copies:
                copy.backend.sync_dirty()
            for copy in copies:
                copy.rest()
                copy.backend.release_writers(refuse=True)
        daemon.quit()
    storage_daemon.compare(images[0], folder / "one.copy")
    storage_daemon.compare(images[1], folder / "two.copy")


# -- the contract ----------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(folder: Path) -> Iterator[StorageDaemon]:
    options = image_options(make_image(folder, "qcow2"), throttled=True, export="vol 1")
    with StorageDaemon(folder, *options) as running:
        yield running


def write(daemon: StorageDaemon, command: str, export: str = "vol 1") -> bool:
    client = storage_daemon.QemuIo(daemon.uri(export))
    try:
        return client.run(command)
    finally:
        client.close()


def test_marks_arrive_with_sync_only_and_in_every_tracker(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        first = disk.create_dirty_bitmap(MiB)
        assert write(daemon, "write -P 1 1M 64k")
        assert first.count_blocks() == 0
        disk.sync_dirty()
        assert first.next_dirty(0) == 1
        assert first.count_blocks() == 1
        second = disk.create_dirty_bitmap(65536)
        assert second.count_blocks() == 0
        assert write(daemon, "write -z 3M 512")
        disk.sync_dirty()
        assert second.next_dirty(0) == 3
        assert first.count_blocks() == 2
        disk.release_dirty_bitmap(first)
        disk.release_dirty_bitmap(first)
        assert write(daemon, "discard 2M 64k")
        disk.sync_dirty()
        assert [block for block in range(6) if second.is_dirty(block)] == [2, 3]
        assert first.count_blocks() == 2
        disk.release_dirty_bitmap(second)
        disk.sync_dirty()


def test_a_write_at_the_end_marks_both_blocks(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        bitmap = disk.create_dirty_bitmap(65536)
        assert write(daemon, f"write -P 1 {disk.size - 1536} 512")
        disk.sync_dirty()
        assert bitmap.is_dirty(5)
        assert bitmap.nblocks == 6
        assert write(daemon, f"write -P 1 {5 * MiB - 512} 512")
        disk.sync_dirty()
        assert bitmap.is_dirty(4)


def test_a_hole_that_is_written_is_data_after_sync(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        assert write(daemon, "write -z -u 4M 512k")
        disk.sync_dirty()
        assert disk.next_data(4 * MiB) != (4 * MiB, 5 * MiB)
        assert write(daemon, "write -P 1 4M 64k")
        disk.sync_dirty()
        assert disk.next_data(4 * MiB) == (4 * MiB, 4 * MiB + 65536)


def test_the_top_layer_is_told_from_the_base(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        assert disk.next_allocated(0, disk.size) == (MiB, MiB + 2 * 65536)
        assert disk.next_allocated(2 * MiB, MiB) is None


def test_reads_stop_at_the_end_of_the_disk(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        assert write(daemon, f"write -P 255 {disk.size - 512} 512")
        blk = _core.BlockBuffer()
        assert not disk.read_block(blk, 5 * MiB, MiB)
        assert bytes(blk.data[disk.size - 5 * MiB - 512 :]).rstrip(b"\0") == b"\xff" * 512
        assert disk.read_block(blk, disk.size, 512)


def test_a_qemu_disk_is_not_a_target(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        with pytest.raises(errors.DeviceError, match="source"):
            disk.write_zeroes(0, 512)
        with pytest.raises(errors.DeviceError, match="source"):
            disk.write_block(_core.BlockBuffer(), 0, 512)
        disk.flush()


def test_released_writers_find_their_export_again(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        disk.release_writers()
        disk.hold_writers()
        disk.hold_writers()
        assert not write(daemon, "write 0 512")
        disk.sync_dirty()
        disk.sync_dirty()
        disk.release_writers()
        assert write(daemon, "write 0 512")
        assert daemon_exports(disk) == ["disk0-w"]


def daemon_exports(disk: qemu.QemuBackend) -> list[str]:
    exports = disk.session._qmp.execute("query-block-exports")
    return [entry["id"] for entry in exports if not entry["id"].startswith("blkmig")]


def test_refused_writers_stay_out(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        disk.hold_writers()
        disk.release_writers(refuse=True)
        assert not write(daemon, "write 0 512")
    assert not write(daemon, "write 0 512")


def test_closing_lets_held_writers_go_on(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        disk.hold_writers()
    assert write(daemon, "write 0 512")


def test_a_disk_that_is_closed_twice(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        disk.close()
        disk.close()
        with pytest.raises(errors.DeviceError):
            disk.sync_dirty()
        with pytest.raises(errors.DeviceError):
            disk.read_block(_core.BlockBuffer(), 0, 512)


# -- throttling ------------------------------------------------------------------------------------------------------


def limits(daemon: StorageDaemon, disk: qemu.QemuBackend | None = None) -> int:
    ask = disk.session._qmp.execute if disk else lambda command, values: daemon.ask(command, **values)
    found: int = ask("qom-get", {"path": "/objects/disk0-limit", "property": "limits"})["bps-write"]
    return found


def test_writers_are_throttled_and_get_their_own_limit_back(daemon: StorageDaemon) -> None:
    own = 500 << 20
    daemon.ask("qom-set", path="/objects/disk0-limit", property="limits", value={"bps-write": own})
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        assert write(daemon, "write -P 1 0 4M")
        disk.sync_dirty()
        assert disk.throttle_writers(0.8)
        slow = limits(daemon, disk)
        assert 0 < slow < own
        assert disk.throttle_writers(0.4)
        assert 0 < limits(daemon, disk) <= slow
        assert disk.throttle_writers(1.0)
        assert limits(daemon, disk) == own
        assert disk.throttle_writers(0.5)
        assert limits(daemon, disk) < own
    assert limits(daemon) == own


def test_disks_that_share_a_throttle_group_get_the_users_limits_back(folder: Path) -> None:
    options = ["--object", "throttle-group,id=tg,limits.bps-write=900000000"]
    for name in ("one", "two"):
        image = make_image(folder, "raw", name)
        options += ["--blockdev", f"throttle,node-name={name}-limit,throttle-group=tg,file.driver=raw,"
                    f"file.node-name={name},file.file.driver=file,file.file.filename={image}"]  # fmt: skip
        options += ["--export", f"nbd,id={name},node-name={name}-limit,name={name},writable=on"]

    def limit(disk: qemu.QemuBackend) -> int:
        asked = {"path": "/objects/tg", "property": "limits"}
        return int(disk.session._qmp.execute("qom-get", asked)["bps-write"])

    with StorageDaemon(folder, *options) as daemon, opened(daemon) as [one, two]:
        for limited in one.session._throttles:
            limited._speed = 10.0 * MiB
        assert one.throttle_writers(0.5)
        assert limit(one) == 5 * MiB
        assert two.throttle_writers(0.1)
        assert limit(one) == MiB
        assert two.throttle_writers(1.0)
        assert limit(one) == 5 * MiB
        assert one.throttle_writers(1.0)
        assert limit(one) == 900_000_000


def test_a_disk_without_a_filter_cannot_be_throttled(folder: Path) -> None:
    with StorageDaemon(folder, *image_options(make_image(folder, "raw"))) as daemon, opened(daemon) as [disk]:
        assert not disk.throttle_writers(0.5)


# -- pitfalls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
def test_a_snapshot_in_mid_flight_is_noticed(folder: Path, daemon: StorageDaemon, held: bool) -> None:
    overlay = folder / "overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, str(SIZE)], check=True)
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        execute = disk.session._qmp.execute
        file = {"driver": "file", "filename": str(overlay)}
        execute("blockdev-add", {"driver": "qcow2", "node-name": "overlay", "file": file})
        execute("blockdev-snapshot", {"node": "disk0-limit", "overlay": "overlay"})
        assert write(daemon, "write -P 1 1M 64k")
        if held:
            disk.hold_writers()
        with pytest.raises(errors.DeviceError, match="snapshot"):
            disk.sync_dirty()
    assert write(daemon, "write -P 1 1M 64k")


def open_a_late_export(disk: qemu.QemuBackend) -> None:
    """Hold the writers, fetch what they left, and let another one in."""
    disk.create_dirty_bitmap(MiB)
    disk.hold_writers()
    disk.sync_dirty()
    again = {"type": "nbd", "id": "late", "node-name": "disk0", "name": "late", "writable": True}
    disk.session._qmp.execute("block-export-add", again)


def test_a_write_past_the_held_writers_is_noticed(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        open_a_late_export(disk)
        assert write(daemon, "write 0 512", "late")
        with pytest.raises(errors.DeviceError, match="was written while its writers were held"):
            disk.release_writers(refuse=True)
        assert write(daemon, "write 0 512")


def test_a_write_after_the_question_was_read_is_noticed(daemon: StorageDaemon) -> None:
    """QEMU has read the question whether anything was written, all but its end, before the write."""
    with opened(daemon) as [disk]:
        open_a_late_export(disk)
        session = disk.session
        gate = session._qmp.withhold()
        session._sync._quiet = gate, session._watch.ask(exports=False)
        assert write(daemon, "write 0 512", "late")
        assert gate.is_shut
        with pytest.raises(errors.DeviceError, match="was written while its writers were held"):
            disk.sync_dirty()


@contextlib.contextmanager
def not_today(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: errors.DeviceError
) -> Iterator[None]:
    """Have the method `name` of `owner` fail, which the body must meet."""

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(owner, name, fail)
        with pytest.raises(errors.DeviceError, match="not today"):
            yield


def test_writers_that_cannot_be_held_go_on(daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has been told to close their export, and has read that a bitmap shall record, when it goes wrong."""
    with opened(daemon) as [disk]:
        bitmap = disk.create_dirty_bitmap(MiB)
        timeout = qmp.QmpTimeout("waiting for an event", device="disk0", cause="not today")
        with not_today(monkeypatch, qmp.QmpConnection, "wait_event", timeout):
            disk.hold_writers()
        assert write(daemon, "write -P 1 1M 64k")
        disk.sync_dirty()
        assert [block for block in range(6) if bitmap.take_block(block)] == [1]
        disk.hold_writers()
        disk.sync_dirty()
        assert bitmap.count_blocks() == 0
        disk.release_writers()
        disk.release_dirty_bitmap(bitmap)
        nodes = disk.session._qmp.execute("query-named-block-nodes", {"flat": True})
        assert not any(node.get("dirty-bitmaps") for node in nodes)


def test_a_command_of_another_thread_while_the_writers_are_being_held(
    daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has QEMU run what is withheld too early: a write that is in flight then is no write past the held writers."""
    with opened(daemon) as [disk]:
        bitmap = disk.create_dirty_bitmap(MiB)
        assert write(daemon, "write -P 1 1M 64k")
        connection, start = disk.session._qmp, objects.start_deleting_export

        def start_with_a_write_in_flight(*arguments: Any, **options: Any) -> Callable[[], None]:
            def await_end() -> None:
                connection.execute("query-block-exports")
                assert write(daemon, "write -P 1 2M 64k")
                start(*arguments, **options)()

            return await_end

        with monkeypatch.context() as slow:
            slow.setattr(objects, "start_deleting_export", start_with_a_write_in_flight)
            disk.hold_writers()
        disk.sync_dirty()
        assert [block for block in range(6) if bitmap.take_block(block)] == [1, 2]
        disk.sync_dirty()
        disk.release_writers()
        assert write(daemon, "write -P 1 3M 64k")
        disk.sync_dirty()
        assert [block for block in range(6) if bitmap.take_block(block)] == [3]


def test_a_bitmap_that_somebody_else_removed(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        active = disk.session._tracking[0].active
        disk.session._qmp.execute("block-dirty-bitmap-remove", {"node": "disk0", "name": active})
        with pytest.raises(errors.DeviceError, match="lost its dirty tracking"):
            disk.sync_dirty()


def test_a_bitmap_that_could_not_be_listed_is_listed_next_time(
    daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(daemon) as [disk]:
        bitmap = disk.create_dirty_bitmap(MiB)
        assert write(daemon, "write -P 1 1M 64k")
        failure = errors.DeviceError("connect", device="disk0", cause="not today")
        with not_today(monkeypatch, objects.OwnObjects, "connect", failure):
            disk.sync_dirty()
        assert bitmap.count_blocks() == 0
        disk.sync_dirty()
        assert [block for block in range(6) if bitmap.is_dirty(block)] == [1]


def test_each_step_lists_what_came_since_the_one_before(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        bitmap = disk.create_dirty_bitmap(MiB)
        for block in (3, 1, 1, 0):
            assert write(daemon, f"write -P 1 {block * MiB} 64k")
            disk.sync_dirty()
            assert [dirty for dirty in range(6) if bitmap.take_block(dirty)] == [block]
            disk.sync_dirty()
            assert bitmap.count_blocks() == 0
        assert write(daemon, "write -P 1 2M 64k")
        disk.hold_writers()
        disk.sync_dirty()
        assert [dirty for dirty in range(6) if bitmap.take_block(dirty)] == [2]
        disk.release_writers()
        for block in (3, 1, 2):
            assert write(daemon, f"write -P 1 {block * MiB} 64k")
            disk.sync_dirty()
            assert [dirty for dirty in range(6) if bitmap.take_block(dirty)] == [block]


@pytest.mark.parametrize("seed", range(3))
def test_a_qemu_that_exports_no_bitmap_that_records(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    add_export = objects.OwnObjects.add_export

    def as_before_7_1(self: objects.OwnObjects, name: str, node: str, **options: object) -> None:
        bitmaps = options.get("bitmaps")
        if isinstance(bitmaps, list) and isinstance(bitmaps[0], dict):
            options["bitmaps"] = [bitmaps[0]["name"]]
        add_export(self, name, node, **options)

    monkeypatch.setattr(objects.OwnObjects, "add_export", as_before_7_1)
    stress(folder, make_image(folder, "raw", seed=seed), seed)


def test_a_writer_that_comes_while_the_others_are_held_is_noticed(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        open_a_late_export(disk)
        with pytest.raises(errors.DeviceError, match="opened for writing meanwhile"):
            disk.sync_dirty()


def test_a_snapshot_right_before_the_writers_are_held_is_noticed(
    folder: Path, daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writers are found by a graph that was read before it."""
    monkeypatch.setattr(watch, "FRESH_SECONDS", 3600.0)
    overlay = folder / "overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, str(SIZE)], check=True)
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        disk.sync_dirty()
        execute = disk.session._qmp.execute
        file = {"driver": "file", "filename": str(overlay)}
        execute("blockdev-add", {"driver": "qcow2", "node-name": "overlay", "file": file})
        execute("blockdev-snapshot", {"node": "disk0-limit", "overlay": "overlay"})
        assert write(daemon, "write -P 1 1M 64k")
        disk.hold_writers()
        disk.sync_dirty()
        with pytest.raises(errors.DeviceError, match="snapshot"):
            disk.sync_dirty()


def test_an_export_that_may_write_among_others_must_be_named(folder: Path, daemon: StorageDaemon) -> None:
    daemon.ask("block-export-add", type="nbd", id="backup", node_name="disk0", name="backup")
    with pytest.raises(errors.DeviceError, match=r"export=ID"):
        qemu.open_qemu(daemon.address)
    assert daemon.leftovers() == []
    with opened(daemon, ",export=disk0-w") as [disk]:
        disk.hold_writers()
        assert daemon_exports(disk) == ["backup"]
        disk.release_writers()
        assert sorted(daemon_exports(disk)) == ["backup", "disk0-w"]


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


# -- which disks -----------------------------------------------------------------------------------------------------


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


# -- what killed runs leave ------------------------------------------------------------------------------------------

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
        assert leftovers.remove(disk.session._qmp).removed == []
        disk.sync_dirty()
