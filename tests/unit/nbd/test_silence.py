# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD servers that go away or say nothing, and cancels and interrupts meanwhile."""

from __future__ import annotations

import errno
import random
import socket
import struct
import threading
from collections.abc import Callable
from concurrent import futures

import nbd_servers
import pytest
from nbd_requests import answer_all, before_waiting, connect, expect
from nbd_servers import Asked, FakeServer

from blkmig import errors
from blkmig.nbd import connection as nbd_connection
from blkmig.nbd import uri as nbd_uri

nbd_servers.require_libnbd()


def waiting_threads(connection: nbd_connection.NbdConnection, count: int) -> list[futures.Future[None]]:
    """Start threads that read, each of its own."""
    pool = futures.ThreadPoolExecutor(count)
    started = [pool.submit(connection.pread_into, bytearray(4096), number * 4096) for number in range(count)]
    pool.shutdown(wait=False)
    return started


def when_seen(count: int) -> tuple[Callable[[Asked], None], threading.Event]:
    """Return an answer that answers nothing, and an event that says that `count` requests have come."""
    event = threading.Event()
    seen: list[Asked] = []

    def answer(asked: Asked) -> None:
        seen.append(asked)
        if len(seen) == count:
            event.set()

    return answer, event


def test_close_wakes_everybody() -> None:
    answer, all_seen = when_seen(8)
    with FakeServer(answer) as server:
        connection = connect(server)
        waiting = waiting_threads(connection, 8)
        assert all_seen.wait(10)
        connection.close()
        connection.close()
        for one in waiting:
            with expect(errno.ECANCELED):
                one.result(10)
        with expect(errno.ECANCELED):
            connection.pread_into(bytearray(1), 0)


def test_server_gone() -> None:
    answer, all_seen = when_seen(8)
    with FakeServer(answer) as server:
        connection = connect(server)
        waiting = waiting_threads(connection, 8)
        assert all_seen.wait(10)
        server.hang_up()
        for one in waiting:
            with pytest.raises(errors.DeviceError, match="disk 'disk': cannot read at offset"):
                one.result(10)
        with pytest.raises(errors.DeviceError):
            connection.flush()
        connection.close()


def test_server_silent() -> None:
    with FakeServer(lambda asked: None) as server:
        connection = connect(server, request_timeout=0.05)
        with expect(errno.ETIMEDOUT):
            connection.pread_into(bytearray(512), 0)
        connection.close()


def test_a_cancel_ends_every_wait_for_a_silent_server() -> None:
    """B5: leader and followers, and whatever comes later."""
    answer, all_seen = when_seen(3)
    with FakeServer(answer) as server:
        connection = connect(server, request_timeout=120)
        waiting = waiting_threads(connection, 3)
        assert all_seen.wait(10)
        connection.cancel()
        for one in waiting:
            with pytest.raises(errors.Cancelled):
                one.result(10)
        with pytest.raises(errors.Cancelled):
            connection.flush()
        connection.close()


def test_a_cancel_takes_what_a_server_answers_soon() -> None:
    """B5: a connection that works stays: QEMU before 9.0 aborts if a client closes it for a disk in an iothread."""
    seen = threading.Event()
    kept: list[Asked] = []

    def keep(asked: Asked) -> None:
        kept.append(asked)
        seen.set()

    with FakeServer(keep) as server:
        connection = connect(server)
        [waiting] = waiting_threads(connection, 1)
        assert seen.wait(10)
        connection.cancel()
        answer_all(kept.pop())
        waiting.result(10)
        with pytest.raises(errors.Cancelled):
            connection.pread_into(bytearray(512), 0)
        connection.renew()
        seen.clear()
        [waiting] = waiting_threads(connection, 1)
        assert seen.wait(10)
        answer_all(kept.pop())
        waiting.result(10)
        connection.close()


def test_connecting_can_be_cancelled() -> None:
    """B5: a server that accepts and says nothing."""
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.Cancelled):
            nbd_connection.NbdConnection(uri, connect_timeout=60, is_cancelled=cancelled.is_set)


def test_server_talks_nonsense() -> None:
    with FakeServer(lambda asked: server.send(b"nonsense" * 4)) as server:
        connection = connect(server)
        with pytest.raises(errors.DeviceError):
            connection.pread_into(bytearray(512), 0)
        connection.close()


def test_interrupted_reader_leaves_its_buffer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupted read left in flight must not be written into memory that is used for something else."""
    answered: list[Asked] = []
    with FakeServer(answered.append) as server:
        is_due = threading.Event()
        before_waiting(monkeypatch, lambda: interrupt() if is_due.is_set() else None)
        connection = connect(server)
        is_due.set()
        buffer = bytearray(512)
        with pytest.raises(KeyboardInterrupt):
            connection.pread_into(buffer, 0)
        with expect(errno.ECANCELED):
            connection.pread_into(bytearray(1), 0)
        for asked in answered:
            asked.reply(b"late" * 128)
    assert b"late" not in buffer
    buffer.clear()  # nothing holds on to it


def interrupt() -> None:
    raise KeyboardInterrupt


def test_nobody_answers_the_handshake() -> None:
    with nbd_servers.private_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        with expect(errno.ETIMEDOUT):
            nbd_connection.NbdConnection(nbd_uri.unix_uri(str(folder / "s")), connect_timeout=0.05)


@pytest.mark.parametrize("seed", range(12))
def test_handshake_of_anybody_else(seed: int) -> None:
    """Who answers is no NBD server, or one that says strange things and hangs up: an error, soon."""
    rng = random.Random(seed)
    hello = b"NBDMAGICIHAVEOPT\0\3" + struct.pack(">QIII", 0x3E889045565A9, 7, 1, rng.randrange(2**32))
    words = hello[: rng.randrange(len(hello) + 1)] + rng.randbytes(rng.choice((0, 1, 40, 4096)))
    with nbd_servers.private_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        with futures.ThreadPoolExecutor(1) as pool:
            pool.submit(say_and_hang_up, listener, words)
            with pytest.raises(errors.DeviceError, match="cannot connect"):
                nbd_connection.NbdConnection(nbd_uri.unix_uri(str(folder / "s")), connect_timeout=5)


def say_and_hang_up(listener: socket.socket, words: bytes) -> None:
    client, _ = listener.accept()
    with client:
        client.sendall(words)
