# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD servers that are frozen, or accept and say nothing: a cancel is heard at once, every wait has a bound (B5)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command
import nbd_servers
import peers
import pytest
from nbd_requests import await_requests
from nbd_requests import in_flight as in_flight
from nbd_servers import READ, Asked, FakeServer
from pauses import Call
from processes import child_called

import blkmig
from blkmig import _core, errors
from blkmig.nbd import backend as nbd
from blkmig.nbd import connection as nbd_connection
from blkmig.nbd import exported, image, qemunbd
from blkmig.nbd import uri as nbd_uri
from blkmig.qemu import exportnames

nbd_servers.require_libnbd()

MiB = 1 << 20
SOON = 20.0  # seconds: far below every bound that would end a wait by itself, and enough for a busy machine


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Give the URI of somebody who accepts and says nothing."""
    with nbd_servers.private_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        yield nbd_uri.unix_uri(str(folder / "s"))


def assert_cancelled(waiting: Call) -> None:
    """Expect a cancel to end what waits."""
    with pytest.raises(errors.Cancelled):
        waiting.result()


def test_a_cancel_ends_all_that_waits_and_closing_does_not_block() -> None:
    asked = threading.Semaphore(0)
    with FakeServer(lambda _asked: asked.release()) as server:
        connection = nbd_connection.NbdConnection(server.uri, device="disk")
        waiting = [Call(lambda: connection.pread_into(bytearray(512), 0)) for _ in range(3)]
        waiting.append(Call(connection.flush))
        for _ in waiting:
            assert asked.acquire(timeout=SOON)
        connection.cancel()
        for future in waiting:
            assert_cancelled(future)
        with pytest.raises(errors.Cancelled):
            connection.pread_into(bytearray(512), 0)
        assert not connection.renew()
        connection.close()
        with pytest.raises(errors.DeviceError):
            connection.flush()


def test_a_late_answer_does_not_reach_a_buffer_that_was_given_up() -> None:
    asked: list[Asked] = []
    here = threading.Event()

    def keep(one: Asked) -> None:
        asked.append(one)
        here.set()

    with FakeServer(keep) as server:
        connection = nbd_connection.NbdConnection(server.uri, device="disk")
        buffer = bytearray(512)
        waiting = Call(lambda: connection.pread_into(buffer, 0))
        assert here.wait(SOON)
        connection.cancel()
        assert_cancelled(waiting)
        asked[0].reply(b"late" * 128)
        with pytest.raises(errors.Cancelled):
            connection.flush()
        assert not any(buffer)
        connection.close()


def test_a_cancel_with_nothing_in_flight_can_be_taken_back() -> None:
    with FakeServer(lambda asked: asked.reply(bytes(asked.nbytes) if asked.type == READ else b"")) as server:
        connection = nbd_connection.NbdConnection(server.uri, device="disk")
        connection.cancel()
        assert connection.renew()
        connection.pread_into(bytearray(512), 0)
        connection.close()


def test_a_disk_that_was_cancelled_can_be_sent_again(in_flight: threading.Semaphore) -> None:
    with nbd_servers.nbdkit("memory", "8M") as server, nbd.NbdBackend(server.uri) as disk:
        server.kill(signal.SIGSTOP)
        waiting = Call(lambda: disk.read_block(_core.BlockBuffer(), 0, MiB))
        await_requests(in_flight)
        disk.cancel()
        assert_cancelled(waiting)
        server.kill(signal.SIGCONT)
        disk.release_dirty_bitmap(disk.create_dirty_bitmap(MiB))
        assert disk.read_block(_core.BlockBuffer(), 0, MiB)


def test_who_writes_a_disk_goes_on_when_its_migration_was_cancelled() -> None:
    """They share the connection, and what is cancelled is the migration."""
    with nbd_servers.nbdkit("memory", "8M") as server, nbd.NbdBackend(server.uri) as disk:
        bitmap = disk.create_dirty_bitmap(MiB)
        disk.cancel()
        calls = [Call(lambda: disk.pwrite(b"mine", 0)), Call(lambda: disk.pwrite_zeroes(MiB, MiB))]
        assert not any(call.is_over(0.05) for call in calls)
        disk.release_dirty_bitmap(bitmap)
        for call in calls:
            call.result()
        disk.cancel()  # once more, with nobody who could be meant
        assert disk.pread(0, 4) == b"mine"


@pytest.mark.parametrize("name", ["pread", "pwrite", "pwrite_zeroes"])
def test_who_drives_a_migration_does_not_wait_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It waited for ever: nobody else would leave the migration."""
    monkeypatch.setattr(exported, "USER_SECONDS", 0.05)
    use: dict[str, Any] = {"pread": (0, 4), "pwrite": (b"mine", 0), "pwrite_zeroes": (0, 4)}
    with nbd_servers.nbdkit("memory", "8M") as server, nbd.NbdBackend(server.uri, name="d") as disk:
        disk.pwrite(os.urandom(MiB), 0)

        def drive() -> None:
            with blkmig.outgoing([disk], f"file:{tmp_path}/stream") as migration:
                migration.cancel()
                with pytest.raises(errors.DeviceError, match="leave its with first"):
                    getattr(disk, name)(*use[name])

        Call(drive).result()
        getattr(disk, name)(*use[name])


def test_a_write_that_a_frozen_server_has_is_not_sent_twice(in_flight: threading.Semaphore) -> None:
    """It may be written yet, after what comes later on another connection."""
    with nbd_servers.nbdkit("memory", "8M") as server, nbd.NbdBackend(server.uri) as disk:
        server.kill(signal.SIGSTOP)
        writing = Call(lambda: disk.pwrite(bytes(512), 0))
        await_requests(in_flight)
        disk.cancel()
        with pytest.raises(errors.DeviceError, match="did not answer"):
            writing.result()


def test_a_cancel_that_comes_too_late_touches_no_disk(tmp_path: Path) -> None:
    """Another migration may use it by then."""
    with nbd_servers.nbdkit("memory", "8M") as server, nbd.NbdBackend(server.uri, name="d") as disk:
        with blkmig.outgoing([disk], f"file:{tmp_path}/stream") as migration:
            migration.run()
        with blkmig.IncomingMigration(f"file:{tmp_path}/stream", {"d": disk}) as incoming:
            incoming.run()
        bitmap = disk.create_dirty_bitmap(MiB)
        for over in (migration, incoming):
            over.cancel()
            assert disk.read_block(_core.BlockBuffer(), 0, MiB)
        disk.release_dirty_bitmap(bitmap)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_migration_with_a_frozen_server_is_cancelled_at_once(
    tmp_path: Path, side: str, in_flight: threading.Semaphore
) -> None:
    with nbd_servers.nbdkit("memory", "64M") as server:
        if side == "source":
            started = threading.Event()
            with nbd.NbdBackend(server.uri, name="v") as source:
                outgoing = blkmig.outgoing([source], f"file:{tmp_path}/s", on_progress=lambda _event: started.set())
                server.kill(signal.SIGSTOP)
                waiting = Call(lambda: enter_and_run(outgoing))
                await_requests(in_flight)
                outgoing.cancel()
                assert_cancelled(waiting)
            return
        source_path = tmp_path / "v.raw"
        source_path.write_bytes(os.urandom(4 * MiB))
        blkmig.send([source_path], f"file:{tmp_path}/s")
        with nbd.NbdBackend(server.uri, name="v") as target:
            incoming = blkmig.incoming(f"file:{tmp_path}/s", {"v": target})
            server.kill(signal.SIGSTOP)
            waiting = Call(lambda: enter_and_run(incoming))
            await_requests(in_flight)
            incoming.cancel()
            assert_cancelled(waiting)


def enter_and_run(migration: blkmig.OutgoingMigration | blkmig.IncomingMigration) -> None:
    with migration:
        migration.run()


def test_a_frozen_qemu_nbd_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_flight: threading.Semaphore
) -> None:
    peers.require("qemu-nbd", "qemu-img")
    monkeypatch.setattr(qemunbd, "HURRY_TIMEOUT", 0.2)
    path = tmp_path / "v.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    with image.ImageBackend(path, format="qcow2") as disk:
        server = child_called("qemu-nbd")
        server.kill(signal.SIGSTOP)
        waiting = Call(lambda: disk.read_block(_core.BlockBuffer(), 0, MiB))
        await_requests(in_flight)
        disk.cancel()
        assert_cancelled(waiting)
        Call(disk.close).result()
        assert not server.is_there()


def test_listing_exports_has_a_bound_and_hears_a_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as uri:
        cancelled = threading.Event()
        waiting = Call(lambda: exportnames.list_names(uri, device="q", is_cancelled=cancelled.is_set))
        cancelled.set()
        assert_cancelled(waiting)
        monkeypatch.setattr(exportnames, "TIMEOUT", 0.2)
        with pytest.raises(errors.DeviceError, match="did not answer in time"):
            Call(lambda: exportnames.list_names(uri, device="q")).result()


def test_connect_timeout_bounds_the_handshake_of_a_source(tmp_path: Path) -> None:
    with silent_server() as uri:
        done = command.run("send", "--connect-timeout=0.3", f"v={uri}", f"file:{tmp_path}/s")
    assert done.exit_code == 1, done.stderr
    assert "did not answer in time" in done.stderr


def test_idle_timeout_bounds_a_request(tmp_path: Path) -> None:
    with FakeServer(lambda _asked: None, size=MiB) as server:
        uri = server.uri
        done = command.run("send", "--idle-timeout=0.3", f"v={uri}", f"file:{tmp_path}/s")
    assert done.exit_code == 1, done.stderr
    assert "silent for 0.3 s" in done.stderr


def test_one_byte_now_and_then_is_no_answer() -> None:
    ended = threading.Event()

    def drip(asked: Asked) -> None:
        asked.reply()
        while not ended.wait(0.02):
            server.send(b"x")

    with FakeServer(drip) as server, contextlib.ExitStack() as stack:
        stack.callback(ended.set)  # whatever is found: it goes on dripping until then
        connection = nbd_connection.NbdConnection(server.uri, device="disk", request_timeout=0.3)
        stack.callback(connection.close)
        waiting = Call(lambda: connection.pread_into(bytearray(MiB), 0))
        with pytest.raises(errors.DeviceError, match="answered no request"):
            waiting.result()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_that_waits_for_a_frozen_server(tmp_path: Path, number: signal.Signals) -> None:
    asked = threading.Event()
    with FakeServer(lambda _asked: asked.set(), size=MiB) as server:
        process = command.start("send", "--idle-timeout=0", f"v={server.uri}", f"file:{tmp_path}/s")
        assert asked.wait(SOON)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=SOON)
    assert process.returncode == 128 + number, stderr
