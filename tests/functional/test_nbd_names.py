# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts in NBD URIs: a name server that says nothing costs the connect time-out at most, and a cancel is heard."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd_servers
import pytest
import sandbox
import storage_daemon

from blkmig import errors, qemu
from blkmig.nbd import _libnbd
from blkmig.nbd import backend as nbd
from blkmig.nbd import connection as nbd_connection
from blkmig.qemu import exportnames, objects

nbd_servers.require_libnbd()

URI = "nbd://slow:1/"
SOON = 20.0


class Resolver:
    """libnbd whose look-ups of names wait for `answers`; then no name is known."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.answers = threading.Event()
        self.asked = threading.Event()
        self.closed: list[int] = []
        self.has_closed = threading.Semaphore(0)
        self.handle = 0
        self._library = library

    def nbd_aio_connect_uri(self, handle: int, _uri: bytes) -> int:
        self.handle = handle
        self.closed.clear()
        self.asked.set()
        self.answers.wait()
        return -1

    def nbd_close(self, handle: int) -> None:
        self.closed.append(handle)
        self._library.nbd_close(handle)
        self.has_closed.release()

    def __getattr__(self, name: str) -> object:
        return getattr(self._library, name)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    silent = Resolver(_libnbd.load())
    monkeypatch.setattr(_libnbd, "load", lambda: silent)
    yield silent
    silent.answers.set()


def connect(timeout: float, is_cancelled: Callable[[], bool]) -> None:
    nbd_connection.NbdConnection(URI, device="disk", connect_timeout=timeout, is_cancelled=is_cancelled).close()


def list_names(timeout: float, is_cancelled: Callable[[], bool]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exportnames, "TIMEOUT", timeout)
        exportnames.list_names(URI, device="q", is_cancelled=is_cancelled)


@pytest.mark.parametrize("call", [connect, list_names])
def test_a_name_server_that_says_nothing_has_a_bound(
    call: Callable[[float, Callable[[], bool]], None], resolver: Resolver
) -> None:
    with pytest.raises(errors.DeviceError, match=r"'slow' is not found out within 0.1 s"):
        call(0.1, lambda: False)
    assert not resolver.closed, "the resolver still uses the handle"
    resolver.answers.set()
    while not resolver.closed:
        assert resolver.has_closed.acquire(timeout=SOON)
    assert resolver.closed == [resolver.handle]


@pytest.mark.parametrize("call", [connect, list_names])
def test_a_cancel_ends_a_look_up(call: Callable[[float, Callable[[], bool]], None], resolver: Resolver) -> None:
    with pytest.raises(errors.Cancelled):
        call(1000, resolver.asked.is_set)


def test_the_server_of_a_qemu_may_be_at_a_host(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    nbd_servers.peers.require("qemu-storage-daemon")
    monkeypatch.setattr(objects, "CONNECT_SECONDS", 0.1)
    with storage_daemon.private_folder() as folder:
        (folder / "d.raw").write_bytes(bytes(4096))
        with (
            storage_daemon.StorageDaemon(folder, *storage_daemon.image_options(folder / "d.raw")) as daemon,
            pytest.raises(errors.DeviceError, match=r"'slow' is not found out within 0.1 s"),
        ):
            qemu.open_qemu(f"qemu:{daemon.qmp_path},nbd={URI}")


def test_a_name_that_nobody_knows_is_said() -> None:
    with pytest.raises(errors.DeviceError, match=r"slow\.invalid"):
        nbd.NbdBackend("nbd://slow.invalid:1/")


def test_a_silent_name_server_bounds_a_command(tmp_path: Path) -> None:
    sandbox.require()
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30\n")
    (tmp_path / "d.raw").write_bytes(bytes(4096))
    silent = f"""
        mount --bind {tmp_path}/resolv.conf /etc/resolv.conf
        {sys.executable} -c '
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("bound", flush=True)
sys.stdin.read()' <&8 >"$SANDBOX/bound" &
    """
    done = sandbox.Sandbox(tmp_path / "s").run(
        f"""
        mkfifo "$SANDBOX/bound" "$SANDBOX/stop"; exec 8<>"$SANDBOX/stop"
        {silent}
        read -r _ <"$SANDBOX/bound"
        blkmig send --connect-timeout=0.3 d=nbd://slow.example:1/ file:{tmp_path}/out
        """
    )
    assert done.returncode == 1, done.stderr
    assert "the name 'slow.example' is not found out within 0.3 s" in done.stderr
