# SPDX-License-Identifier: GPL-2.0-or-later
"""Many disks of one QEMU: what the pause costs does not grow with the disks that nobody writes (E17)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lab
import peers
import pytest
import storage_daemon
from storage_daemon import StorageDaemon, image_options

from blkmig import disk, errors, qemu
from blkmig.nbd import connection as nbd_connection
from blkmig.qemu import objects, qmp

peers.require("qemu-storage-daemon", "qemu-io")

SIZE = 256 << 10


@pytest.fixture
def folder() -> Iterator[Path]:
    with storage_daemon.private_folder() as path:
        yield path


def idle_image(folder: Path, number: int) -> list[str]:
    """Return the daemon's options for a disk that nobody writes."""
    path = folder / f"idle{number}.raw"
    path.write_bytes(bytes([number + 1]) * SIZE)
    return ["--blockdev", f"raw,node-name=idle{number},file.driver=file,file.filename={path}"]


@contextlib.contextmanager
def idle_disks(folder: Path, count: int, *more: str, nbd_server: bool = True) -> Iterator[StorageDaemon]:
    options = [word for number in range(count) for word in idle_image(folder, number)]
    with StorageDaemon(folder, *more, *options, nbd_server=nbd_server) as daemon:
        yield daemon


@contextlib.contextmanager
def opened(daemon: StorageDaemon, address: str = "") -> Iterator[list[qemu.QemuBackend]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(each) for each in qemu.open_qemu(address or daemon.address)]
    assert daemon.leftovers() == []


def image_files(folder: Path, count: int, *, throttled: bool = False) -> list[str]:
    """Make images; return the daemon's options for them and a writable export of each."""
    options = []
    for number in range(count):
        path = folder / f"disk{number}.raw"
        path.write_bytes(bytes(SIZE))
        options += image_options(path, f"disk{number}", throttled=throttled)
    return options


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """Give the commands that QEMU is told in the body."""
    commands: list[str] = []
    start = qmp.QmpConnection.start

    def telling(self: qmp.QmpConnection, command: str, arguments: Mapping[str, object] | None = None) -> object:
        commands.append(command)
        return start(self, command, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qmp.QmpConnection, "start", telling)
        yield commands


def pause(disks: list[qemu.QemuBackend]) -> None:
    """Do what a migration does with its disks at its end."""
    disk.sync_disks(disks)
    for each in disks:
        each.hold_writers()
    disk.sync_disks(disks)
    disk.sync_disks(disks)
    for each in disks:
        each.release_writers()


@pytest.mark.parametrize("count", [6, 18])
def test_an_idle_disk_costs_no_command_in_the_pause(folder: Path, count: int) -> None:
    with idle_disks(folder, count) as daemon, opened(daemon) as disks:
        bitmaps = [each.create_dirty_bitmap(1 << 20) for each in disks]
        disk.sync_disks(disks)
        with told() as commands:
            pause(disks)
        assert not any(bitmap.count_blocks() for bitmap in bitmaps)
    assert len(commands) <= 16, commands  # three for each look at the graph, however many disks there are


def test_writers_of_many_disks_go_on_without_a_question_for_each(folder: Path) -> None:
    """Each of them had its export closed."""
    with StorageDaemon(folder, *image_files(folder, 8)) as daemon, opened(daemon) as disks:
        exports = {export["id"] for export in disks[0].session.qmp.execute("query-block-exports")}
        for each in disks:
            each.create_dirty_bitmap(1 << 20)
        disk.sync_disks(disks)
        for each in disks:
            each.hold_writers()
        disk.sync_disks(disks)
        with told() as commands:
            for each in disks:
                each.release_writers()
        assert {export["id"] for export in disks[0].session.qmp.execute("query-block-exports")} == exports
    assert commands.count("query-named-block-nodes") <= 2, commands
    assert commands.count("block-export-add") == 8


@pytest.mark.parametrize("count", [2, 6])
def test_a_throttle_without_limits_costs_no_command_in_the_pause(folder: Path, count: int) -> None:
    """As ``blkmig serve`` makes them, one for each disk."""
    with StorageDaemon(folder, *image_files(folder, count, throttled=True)) as daemon, opened(daemon) as disks:
        for each in disks:
            each.create_dirty_bitmap(1 << 20)
        for _ in range(2):
            disk.sync_disks(disks)
            with told() as commands:
                for each in disks:
                    each.hold_writers()
                disk.sync_disks(disks)
            for each in disks:
                each.release_writers()
            assert commands.count("block-export-del") == count
            assert "qom-get" not in commands


class Turns:
    """How often this thread has waited for QEMU after it had told it something."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._has_told = False
        start, await_answer = qmp.QmpConnection.start, qmp.QmpConnection.await_answer
        mine = threading.current_thread()

        def telling(connection: qmp.QmpConnection, *arguments: Any) -> qmp.Command:
            self._has_told |= threading.current_thread() is mine
            return start(connection, *arguments)

        def awaiting(connection: qmp.QmpConnection, *arguments: Any) -> Any:
            if threading.current_thread() is mine:
                self.count += self._has_told
                self._has_told = False
            return await_answer(connection, *arguments)

        patch.setattr(qmp.QmpConnection, "start", telling)
        patch.setattr(qmp.QmpConnection, "await_answer", awaiting)

    def take(self) -> int:
        """Return the number since the last time."""
        count, self.count = self.count, 0
        return count


@contextlib.contextmanager
def written_disks(folder: Path, count: int) -> Iterator[tuple[StorageDaemon, list[nbd_connection.NbdConnection]]]:
    """Give a daemon with `count` disks, and what writes to each."""
    folder.mkdir()
    with StorageDaemon(folder, *image_files(folder, count)) as daemon, contextlib.ExitStack() as stack:
        clients = [nbd_connection.NbdConnection(daemon.uri(f"disk{number}")) for number in range(count)]
        for client in clients:
            stack.callback(client.close)
        yield daemon, clients


def turns_of(folder: Path, count: int) -> dict[str, int]:
    """Do what a migration does with `count` disks, all of which are written in every round; return what it waits."""
    found: dict[str, int] = {}
    with written_disks(folder, count) as (daemon, clients), pytest.MonkeyPatch.context() as patch:
        turns = Turns(patch)

        def write() -> None:
            for client in clients:
                client.pwrite(b"x" * 512, 0)

        with opened(daemon) as disks:
            found["opening"] = turns.take()
            bitmaps = [each.create_dirty_bitmap(1 << 20) for each in disks]
            for step in ("the first round", "a round"):
                write()
                turns.take()
                disk.sync_disks(disks)
                found[step] = turns.take()
            write()
            for each in disks:
                each.hold_writers()
            found["holding"] = turns.take()
            disk.sync_disks(disks)
            disk.sync_disks(disks)
            found["the last pass"] = turns.take()
            for each in disks:
                each.release_writers()
            found["releasing"] = turns.take()
            assert all(bitmap.is_dirty(0) for bitmap in bitmaps)
    return found


def test_written_disks_are_served_together(folder: Path) -> None:
    """QEMU is told about all of them before anybody waits for an answer: its time counts, and not the way to it."""
    assert turns_of(folder / "few", 6) == turns_of(folder / "many", 12)


def test_more_disks_than_a_server_takes_connections_by_itself(folder: Path) -> None:
    """The server that blkmig starts takes any number."""
    with (
        idle_disks(folder, 104, nbd_server=False) as daemon,
        opened(daemon, f"qemu:{daemon.qmp_path}") as disks,
    ):
        targets = {each.name: folder / f"{each.name}.copy" for each in disks}
        lab.migrate(folder, "unix", list(disks), targets)
    for number in range(104):
        assert (folder / f"idle{number}.copy").read_bytes() == bytes([number + 1]) * SIZE


def test_a_server_without_room_for_all_disks_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that somebody else has started, for a few connections."""
    monkeypatch.setattr(objects, "CONNECT_SECONDS", 0.5)
    with idle_disks(folder, 3, nbd_server=False) as daemon:
        address = {"type": "unix", "data": {"path": str(daemon.nbd_path)}}
        daemon.ask("nbd-server-start", addr=address, max_connections=2)
        with pytest.raises(errors.DeviceError, match="max-connections"):
            qemu.open_qemu(daemon.address)
        assert daemon.leftovers() == []


def test_any_of_many_disks_may_be_written_at_any_time(folder: Path) -> None:
    """Also one that was idle until the writers are being held."""
    first, second = folder / "first.raw", folder / "second.raw"
    for path in (first, second):
        path.write_bytes(bytes(SIZE))
    options = [*image_options(first, "first"), *image_options(second, "second")]
    with idle_disks(folder, 5, *options) as daemon:
        writers = {name: storage_daemon.QemuIo(daemon.uri(name)) for name in ("first", "second")}
        with contextlib.ExitStack() as stack, opened(daemon) as disks:
            for client in writers.values():
                stack.callback(client.close)
            by_name = {each.name: each for each in disks}
            bitmaps = {each.name: each.create_dirty_bitmap(64 << 10) for each in disks}
            disk.sync_disks(disks)
            assert writers["first"].run("write -P 1 64k 4k")
            disk.sync_disks(disks)
            assert bitmaps["first"].is_dirty(0)
            bitmaps["first"].take_block(0)
            assert writers["first"].run("write -P 2 0 4k")
            assert writers["second"].run("write -P 3 0 4k")
            for each in disks:
                each.hold_writers()
            disk.sync_disks(disks)
            assert {name for name, bitmap in bitmaps.items() if bitmap.count_blocks()} == {"first", "second"}
            disk.sync_disks(disks)  # and nobody has written since
            for each in disks:
                each.release_writers()
            assert by_name["first"].session is by_name["idle0"].session


@pytest.mark.parametrize("written", ["idle", "busy"])
def test_a_write_past_the_held_writers_of_many_is_noticed(folder: Path, written: str) -> None:
    image = folder / "busy.raw"
    image.write_bytes(bytes(SIZE))
    with idle_disks(folder, 6, *image_options(image, "busy")) as daemon:
        client = storage_daemon.QemuIo(daemon.uri("busy"))
        try:
            with opened(daemon) as disks:
                for each in disks:
                    each.create_dirty_bitmap(1 << 20)
                if written == "busy":
                    assert client.run("write -P 1 0 4k")
                disk.sync_disks(disks)
                for each in disks:
                    each.hold_writers()
                disk.sync_disks(disks)
                connection = disks[0].session.qmp
                node = "idle3" if written == "idle" else "busy"
                export = {"type": "nbd", "id": "late", "node-name": node, "name": "late", "writable": True}
                connection.execute("block-export-add", export)
                late = storage_daemon.QemuIo(daemon.uri("late"))
                assert late.run("write -P 7 0 4k")
                late.close()
                connection.execute("block-export-del", {"id": "late", "mode": "hard"})
                connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: data["id"] == "late")
                with pytest.raises(errors.DeviceError, match="was written while its writers were held"):
                    disk.sync_disks(disks)
        finally:
            client.close()
