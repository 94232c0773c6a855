# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a running qemu-storage-daemon, driven through the contract of a disk by a loop of a few lines."""

from __future__ import annotations

import functools
from pathlib import Path

import peers
import pytest
import storage_daemon
from qemu_disks import SIZE, Copy, daemon_exports, limits, make_image, opened, stress, write
from qemu_disks import daemon as daemon
from qemu_disks import folder as folder
from storage_daemon import MiB, StorageDaemon, image_options

from blkmig import _core, disk, errors, qemu
from blkmig.nbd import backend as nbd
from blkmig.qemu import throttle

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")


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


def test_who_forgets_extents_gets_a_younger_answer(daemon: StorageDaemon) -> None:
    """A13: also of a write that nobody has marked yet; an NBD disk does not hear of other clients' writes at all."""
    assert write(daemon, "write -z -u 4M 512k")
    with opened(daemon) as [disk], nbd.NbdBackend(daemon.uri("vol 1"), writable=False) as plain:
        assert disk.next_allocated(3 * MiB, MiB) is None
        assert plain.next_data(4 * MiB) != (4 * MiB, 4 * MiB + 65536)
        assert write(daemon, "write -P 1 3M 64k")
        assert write(daemon, "write -P 1 4M 64k")
        disk.forget_extents()
        plain.forget_extents()
        assert disk.next_allocated(3 * MiB, MiB) == (3 * MiB, 3 * MiB + 65536)
        assert plain.next_data(4 * MiB) == (4 * MiB, 4 * MiB + 65536)


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


def test_disks_that_share_a_throttle_group_get_the_users_limits_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--object", "throttle-group,id=tg,limits.bps-write=900000000"]
    for name in ("one", "two"):
        image = make_image(folder, "raw", name)
        options += ["--blockdev", f"throttle,node-name={name}-limit,throttle-group=tg,file.driver=raw,"
                    f"file.node-name={name},file.file.driver=file,file.file.filename={image}"]  # fmt: skip
        options += ["--export", f"nbd,id={name},node-name={name}-limit,name={name},writable=on"]

    def limit(disk: qemu.QemuBackend) -> int:
        asked = {"path": "/objects/tg", "property": "limits"}
        return int(disk.session.qmp.execute("qom-get", asked)["bps-write"])

    now, measured = 0.0, throttle.Throttle
    monkeypatch.setattr(throttle, "Throttle", functools.partial(measured, clock=lambda: now))
    with StorageDaemon(folder, *options) as daemon, opened(daemon) as [one, two]:
        for name, each in (("one", one), ("two", two)):
            each.create_dirty_bitmap(MiB)
            assert write(daemon, "write 0 1M", name)
        disk.sync_disks([one, two])
        now = 0.125  # so each has written 8 MiB a second
        assert one.throttle_writers(0.5)
        assert limit(one) == 4 * MiB
        assert two.throttle_writers(0.125)
        assert limit(one) == MiB
        assert two.throttle_writers(1.0)
        assert limit(one) == 4 * MiB
        assert one.throttle_writers(1.0)
        assert limit(one) == 900_000_000


def test_a_disk_without_a_filter_cannot_be_throttled(folder: Path) -> None:
    with StorageDaemon(folder, *image_options(make_image(folder, "raw"))) as daemon, opened(daemon) as [disk]:
        assert not disk.throttle_writers(0.5)
