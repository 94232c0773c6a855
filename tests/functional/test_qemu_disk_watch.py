# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens behind the back of a QEMU disk while it is sent is noticed: snapshots, late writers, lost bitmaps."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from qemu_disks import SIZE, daemon_exports, make_image, opened, stress, write
from qemu_disks import daemon as daemon
from qemu_disks import folder as folder
from storage_daemon import MiB, QemuIo, StorageDaemon, image_options

from blkmig import errors, qemu
from blkmig.qemu import objects, qmp, syncing, watch

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")


@pytest.mark.parametrize("held", [False, True])
def test_a_snapshot_in_mid_flight_is_noticed(folder: Path, daemon: StorageDaemon, held: bool) -> None:
    overlay = folder / "overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, str(SIZE)], check=True)
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        execute = disk.session.qmp.execute
        file = {"driver": "file", "filename": str(overlay)}
        execute("blockdev-add", {"driver": "qcow2", "node-name": "overlay", "file": file})
        execute("blockdev-snapshot", {"node": "disk0-limit", "overlay": "overlay"})
        assert write(daemon, "write -P 1 1M 64k")
        notices = disk.hold_writers if held else disk.sync_dirty
        with pytest.raises(errors.DeviceError, match="snapshot"):
            notices()
    assert write(daemon, "write -P 1 1M 64k")


def open_a_late_export(disk: qemu.QemuBackend, *, is_fetched: bool = True, is_move: bool = False) -> None:
    """Hold the writers, fetch what they left if that is to be, and let another one in."""
    disk.create_dirty_bitmap(MiB)
    assert not is_move or disk.about_to_move()
    disk.hold_writers()
    if is_fetched:
        disk.sync_dirty()
    again = {"type": "nbd", "id": "late", "node-name": "disk0", "name": "late", "writable": True}
    disk.session.qmp.execute("block-export-add", again)


def test_a_write_past_the_held_writers_is_noticed(daemon: StorageDaemon) -> None:
    with opened(daemon) as [disk]:
        open_a_late_export(disk)
        assert write(daemon, "write 0 512", "late")
        with pytest.raises(errors.DeviceError, match="was written while its writers were held"):
            disk.release_writers(refuse=True)
        assert write(daemon, "write 0 512")


def test_a_write_past_the_held_writers_of_a_disk_that_has_moved(daemon: StorageDaemon) -> None:
    """The target has it: it is told, and the writers here do not go on, whatever is tried."""
    with qemu.open_qemu(daemon.address)[0] as disk:
        open_a_late_export(disk, is_move=True)
        assert write(daemon, "write 0 512", "late")
        with pytest.raises(errors.DeviceError, match="was written while its writers were held") as caught:
            disk.release_writers(refuse=True)
        assert any("have moved all the same" in note for note in caught.value.__notes__)
        disk.release_writers()
        assert not write(daemon, "write 0 512")
    assert {name.rpartition("-")[2] for name in daemon.leftovers()} >= {"held", "moved"}


def test_a_cancel_while_the_exports_close_opens_them_again(
    daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until QEMU has closed one, it opens no other one of that name."""
    with opened(daemon) as [disk], contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.callback(QemuIo(daemon.uri("vol 1")).close)
            bitmap = disk.create_dirty_bitmap(MiB)
            disk.sync_dirty()
            with monkeypatch.context() as patch:
                patch.setattr(syncing.DirtySync, "start_the_last", lambda *_: disk.cancel() or (lambda: None))
                with pytest.raises(errors.Cancelled):
                    disk.hold_writers()
            disk.release_dirty_bitmap(bitmap)
            assert write(daemon, "write 0 512")


def test_a_cancel_behind_a_move_takes_nothing_back(daemon: StorageDaemon) -> None:
    """What is asked then, whether somebody has written, is asked all the same: the target has the disk."""
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        assert disk.about_to_move()
        disk.hold_writers()
        disk.sync_dirty()
        disk.cancel()
        disk.release_writers(refuse=True)
        assert not write(daemon, "write 0 512")


def test_a_daemon_that_ends_behind_a_move(daemon: StorageDaemon) -> None:
    with qemu.open_qemu(daemon.address)[0] as disk:
        disk.create_dirty_bitmap(MiB)
        assert disk.about_to_move()
        disk.hold_writers()
        disk.sync_dirty()
        daemon.process.kill()
        daemon.process.wait()
        with pytest.raises(errors.NotVerified, match="the disks have moved"):
            disk.release_writers(refuse=True)


def test_a_write_after_the_question_was_read_is_noticed(
    daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU has read the question whether anything was written, all but its end, before the write."""
    gates: list[qmp.Gate] = []
    withhold = qmp.QmpConnection.withhold
    with opened(daemon) as [disk]:
        open_a_late_export(disk, is_fetched=False)
        with monkeypatch.context() as noted:
            noted.setattr(qmp.QmpConnection, "withhold", lambda session: gates.append(withhold(session)) or gates[-1])
            disk.sync_dirty()
        assert write(daemon, "write 0 512", "late")
        assert gates[-1].is_shut
        with pytest.raises(errors.DeviceError, match="was written while its writers were held"):
            disk.sync_dirty()


def test_the_mark_of_a_move_is_there_before_the_end_may_leave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All disks of a QEMU have one, which QEMU is told of before anybody is held. The last look at any disk waits for
    it. It goes when the writers go on."""
    started: list[tuple[str, qmp.Command]] = []
    results: list[qmp.Command] = []
    start, result = qmp.QmpConnection.start, qmp.Command.result

    def starting(own: qmp.QmpConnection, name: str, arguments: Any = None) -> qmp.Command:
        started.append((f"{name} {arguments}", start(own, name, arguments)))
        return started[-1][1]

    def noting(command: qmp.Command, wait: float | None = None) -> Any:
        results.append(command)
        return result(command, wait)

    images = [*image_options(make_image(folder, "raw", "one")), *image_options(make_image(folder, "raw", "two"), "two")]
    with StorageDaemon(folder, *images) as daemon, opened(daemon) as disks:
        for disk in disks:
            disk.create_dirty_bitmap(MiB)
        assert all(disk.about_to_move() for disk in disks)
        assert not has_mark(disks[0], "moved")
        with monkeypatch.context() as watched:
            watched.setattr(qmp.QmpConnection, "start", starting)
            watched.setattr(qmp.Command, "result", noting)
            for disk in disks:
                disk.hold_writers()
            for disk in disks[:1] * 2:
                disk.sync_dirty()
        texts = [text for text, _ in started]
        [mark] = [number for number, text in enumerate(texts) if "-moved" in text]
        assert mark < min(number for number, text in enumerate(texts) if "block-export-del" in text)
        assert started[mark][1] in results
        assert has_mark(disks[0], "moved")
        with pytest.raises(errors.StateError, match="before hold_writers"):
            disks[1].about_to_move()
        for disk in disks:
            disk.release_writers()
        assert not has_mark(disks[0], "moved")


def test_a_move_that_is_taken_back_before_the_hold_leaves_no_mark_in_the_next_one(daemon: StorageDaemon) -> None:
    """As when another disk could not be told, or the pause was over before it began."""
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        assert disk.about_to_move()
        disk.release_writers()
        disk.hold_writers()
        disk.sync_dirty()
        assert not has_mark(disk, "moved")
        disk.release_writers()


def has_mark(disk: qemu.QemuBackend, mark: str) -> bool:
    made = disk.session.qmp.execute("qom-list", {"path": "/objects"})
    return any(entry["name"].endswith(f"-{mark}") for entry in made)


def test_a_mark_that_cannot_be_made_keeps_a_move_from_its_end(
    daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(daemon) as [disk]:
        disk.create_dirty_bitmap(MiB)
        start = qmp.QmpConnection.start
        with monkeypatch.context() as patched:
            patched.setattr(qmp.QmpConnection, "start", lambda own, name, arguments=None: start(
                own, name, {"qom-type": "no-such-type", "id": "m"} if "-moved" in str(arguments) else arguments
            ))  # fmt: skip
            assert disk.about_to_move()
            disk.hold_writers()
        disk.sync_dirty()
        with pytest.raises(qmp.QmpError, match="no-such-type"):
            disk.sync_dirty()
        disk.release_writers()
        assert write(daemon, "write 0 512")


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
        nodes = disk.session.qmp.execute("query-named-block-nodes", {"flat": True})
        assert not any(node.get("dirty-bitmaps") for node in nodes)


def test_a_command_of_another_thread_while_the_writers_are_being_held(
    daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has QEMU run what is withheld too early: a write that is in flight then is no write past the held writers."""
    with opened(daemon) as [disk]:
        bitmap = disk.create_dirty_bitmap(MiB)
        assert write(daemon, "write -P 1 1M 64k")
        connection, start = disk.session.qmp, objects.start_deleting_export

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
        execute = disk.session.qmp.execute
        [node] = (each for each in execute("query-named-block-nodes", {"flat": True}) if each["node-name"] == "disk0")
        [active] = (bitmap["name"] for bitmap in node["dirty-bitmaps"] if bitmap["recording"])
        execute("block-dirty-bitmap-remove", {"node": "disk0", "name": active})
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
        execute = disk.session.qmp.execute
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
