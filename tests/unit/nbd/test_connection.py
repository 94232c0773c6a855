# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD requests against a server in this process that answers when, and how, the test says."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import nbd_servers
import pauses
import pytest
from nbd_requests import KeepAll, answer_all, before_waiting, connect, contents_at, expect
from nbd_servers import READ, WRITE, WRITE_ZEROES, Asked, FakeServer

from blkmig import errors
from blkmig.nbd import connection as nbd_connection
from blkmig.nbd import reading

nbd_servers.require_libnbd()


MiB = 1 << 20
KiB = 1 << 10


@pytest.mark.parametrize("order", [lambda kept: kept, lambda kept: kept[::-1], lambda kept: kept[::2] + kept[1::2]])
def test_sixteen_reads_in_flight(order: Callable[[list[Asked]], list[Asked]]) -> None:
    """Nothing is answered before sixteen requests have come: only requests that are in flight together end at all."""

    def read(thread: int) -> None:
        for turn in range(8):
            buffer = bytearray(64 * KiB)
            offset = (turn * 16 + thread) * 64 * KiB
            connection.pread_into(buffer, offset)
            assert buffer == contents_at(offset, len(buffer))

    with FakeServer(KeepAll(16, order)) as server:
        connection = connect(server)
        with futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(read, range(16)))
        connection.close()
    assert server.counted() == {READ: 128, nbd_servers.DISCONNECT: 1}


def test_large_reads_and_writes_are_cut() -> None:
    with FakeServer(answer_all) as server:
        connection = connect(server)
        connection.maximum = 64 * KiB
        buffer = bytearray(150 * KiB)
        connection.pread_into(buffer, 1000)
        assert buffer == contents_at(1000, len(buffer))
        connection.pwrite(bytes(buffer), 3000)
        connection.close()
    assert [(asked.offset, asked.nbytes) for asked in server.seen[:3]] == [
        (1000, 65536),
        (66536, 65536),
        (132072, 22528),
    ]
    assert b"".join(asked.data for asked in server.seen[3:6]) == buffer


def test_pieces_of_a_read_are_in_flight_together() -> None:
    """Nothing is answered before all of them have come; more than READS_AHEAD come as the first ones are done."""
    buffer = bytearray(3 * nbd_connection.QEMU_READ_PIECE)
    with FakeServer(KeepAll(3, lambda kept: kept[::-1])) as server:
        connection = connect(server, read_piece=nbd_connection.QEMU_READ_PIECE)
        connection.pread_into(buffer, 512)
        connection.close()
    assert buffer == contents_at(512, len(buffer))
    buffer = bytearray((reading.READS_AHEAD + 2) * nbd_connection.QEMU_READ_PIECE)
    with FakeServer(answer_all) as server:
        connection = connect(server, read_piece=nbd_connection.QEMU_READ_PIECE)
        connection.pread_into(buffer, 0)
        connection.close()
    assert buffer == contents_at(0, len(buffer))


def test_no_piece_of_a_failed_read_comes_later() -> None:
    def fail_first(kept: list[Asked]) -> list[Asked]:
        kept[0].reply(error=errno.EIO)
        return kept[1:]

    buffer = bytearray(3 * nbd_connection.QEMU_READ_PIECE)
    with FakeServer(KeepAll(3, fail_first)) as server:
        connection = connect(server, read_piece=nbd_connection.QEMU_READ_PIECE)
        with expect(errno.EIO) as caught:
            connection.pread_into(buffer, 0)
        assert (caught.value.offset, caught.value.nbytes) == (0, nbd_connection.QEMU_READ_PIECE)
        piece = nbd_connection.QEMU_READ_PIECE
        assert buffer[piece:] == contents_at(piece, 2 * piece)
        connection.close()


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 5000])
@pytest.mark.parametrize("nbytes", [1, 100, 4096, 8191, 20000])
def test_widened_to_the_servers_blocks(offset: int, nbytes: int) -> None:
    memory = bytearray(contents_at(0, 64 * KiB))

    def answer(asked: Asked) -> None:
        assert asked.offset % 4096 == asked.nbytes % 4096 == 0
        end = asked.offset + asked.nbytes
        if asked.type == WRITE:
            memory[asked.offset : end] = asked.data
        elif asked.type == WRITE_ZEROES:
            memory[asked.offset : end] = bytes(asked.nbytes)
        asked.reply(bytes(memory[asked.offset : end]) if asked.type == READ else b"")

    with FakeServer(answer, size=len(memory)) as server:
        connection = connect(server)
        connection.minimum = 4096
        wanted = bytearray(memory)
        buffer = bytearray(nbytes)
        connection.pread_into(buffer, offset)
        assert buffer == wanted[offset : offset + nbytes]
        connection.pwrite(b"\xaa" * nbytes, offset)
        wanted[offset : offset + nbytes] = b"\xaa" * nbytes
        assert memory == wanted
        connection.zero(offset + 3, nbytes)
        wanted[offset + 3 : offset + 3 + nbytes] = bytes(nbytes)
        assert memory == wanted
        connection.close()


def test_error_of_the_server_is_not_the_end() -> None:
    def answer(asked: Asked) -> None:
        if asked.offset == 4096:
            asked.reply(error=errno.ENOSPC if asked.type == WRITE else errno.EIO)
        else:
            answer_all(asked)

    with FakeServer(answer) as server:
        connection = connect(server)
        with expect(errno.EIO) as caught:
            connection.pread_into(bytearray(512), 4096)
        assert (caught.value.offset, caught.value.nbytes) == (4096, 512)
        with expect(errno.ENOSPC):
            connection.pwrite(bytes(512), 4096)
        connection.pread_into(bytearray(512), 0)
        connection.close()


def test_many_threads_and_errors_at_random() -> None:
    """No thread is left behind, whoever leads, and whatever its neighbours get."""

    def answer(asked: Asked) -> None:
        if asked.offset // 512 % 3 == 0:
            asked.reply(error=errno.EIO)
        else:
            answer_all(asked)

    def read(thread: int) -> int:
        failures = 0
        for turn in range(200):
            try:
                connection.pread_into(bytearray(512), (thread * 200 + turn) * 512)
            except errors.DeviceError:
                failures += 1
        return failures

    with FakeServer(answer) as server:
        connection = connect(server)
        with futures.ThreadPoolExecutor(12) as pool:
            failures = sum(pool.map(read, range(12)))
        connection.close()
    assert failures == 800


def test_write_goes_on_while_another_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write fills the socket while the leader waits for a reply, which comes only after that write."""
    read_seen = threading.Event()
    reads: list[Asked] = []

    def answer(asked: Asked) -> None:
        if asked.type == READ:
            reads.append(asked)
            read_seen.set()
        else:
            asked.reply()
            reads.pop().reply(bytes(512))

    waits = threading.Event()
    before_waiting(monkeypatch, waits.set)
    with FakeServer(answer) as server:
        connection = connect(server, request_timeout=5)
        waits.clear()
        with futures.ThreadPoolExecutor(1) as pool:
            pending = pool.submit(connection.pread_into, bytearray(512), 0)
            assert read_seen.wait(10)
            assert waits.wait(10), "it leads"
            connection.pwrite(bytes(32 * MiB), 0)
            pending.result()
        connection.close()


def test_nobody_waits_for_the_number_of_a_socket_that_is_closed() -> None:
    """libnbd closes it when sending fails, and any other file of this process may have its number then."""
    with nbd_servers.nbdkit("memory", "1M") as server:
        before = sockets()
        connection = nbd_connection.NbdConnection(server.uri, request_timeout=3600)
        [fd] = sockets() - before
        server.kill()
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        reader, writer = os.pipe()

        def read() -> None:
            request = connection.start_read(memoryview(bytearray(512)), 0)
            os.dup2(reader, fd)  # nothing ever comes from there
            connection.finish_read(request, 0, 512)

        reading = pauses.Call(read)
        with pytest.raises(errors.DeviceError, match="send"):
            reading.result()
        connection.close()
        os.close(reader)
        os.close(writer)


def sockets() -> set[int]:
    """Return the descriptors of this process that are sockets."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            if str(entry.readlink()).startswith("socket:"):
                found.add(int(entry.name))
    return found


def test_a_request_that_cannot_be_sent_ends_those_that_wait() -> None:
    """By whichever thread it is found out that the connection is over."""
    with nbd_servers.nbdkit("memory", "1M", "--filter=delay", "rdelay=3600") as server:
        connection = nbd_connection.NbdConnection(server.uri, request_timeout=3600)
        reading = [pauses.Call(lambda: connection.pread_into(bytearray(512), 0)) for _ in range(3)]
        server.kill()
        for call in [*reading, pauses.Call(lambda: connection.pwrite(bytes(512), 0))]:
            with pytest.raises(errors.DeviceError):
                call.result()
        connection.close()
