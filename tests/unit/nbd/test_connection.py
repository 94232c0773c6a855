# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD requests against a server in this process that answers when, and how, the test says."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import forks
import nbd_servers
import pytest
from nbd_servers import FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, Asked, FakeServer

from blkmig import _core, errors
from blkmig.disk import dirty
from blkmig.nbd import _libnbd, inflight, requests
from blkmig.nbd import backend as nbd
from blkmig.nbd import connection as nbd_connection
from blkmig.nbd import uri as nbd_uri

try:
    _libnbd.load()
except OSError as error:
    nbd_servers.peers.lacking(str(error))

MiB = 1 << 20
KiB = 1 << 10


def connect(server: FakeServer, **options: Any) -> nbd_connection.NbdConnection:
    return nbd_connection.NbdConnection(server.uri, device="disk", **options)


def expect(code: int) -> contextlib.AbstractContextManager[pytest.ExceptionInfo[errors.DeviceError]]:
    """Expect a DeviceError with this errno."""
    return pytest.raises(errors.DeviceError, check=lambda error: error.errno == code)


def contents_at(offset: int, nbytes: int) -> bytes:
    """Return what the servers of these tests hold: bytes that tell their place."""
    start = offset // 8
    words = b"".join(number.to_bytes(8, "big") for number in range(start, (offset + nbytes + 7) // 8))
    return words[offset - start * 8 :][:nbytes]


def answer_all(asked: Asked) -> None:
    asked.reply(contents_at(asked.offset, asked.nbytes) if asked.type == READ else b"")


class KeepAll:
    """Keeps requests until `wanted` of them have come, then answers them in the `order` said."""

    def __init__(self, wanted: int, order: Callable[[list[Asked]], list[Asked]]) -> None:
        self._wanted = wanted
        self._order = order
        self._kept: list[Asked] = []

    def __call__(self, asked: Asked) -> None:
        self._kept.append(asked)
        if len(self._kept) == self._wanted:
            for one in self._order(self._kept):
                answer_all(one)
            self._kept.clear()


# -- requests of many threads ----------------------------------------------------------------------------------------


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
    buffer = bytearray((nbd_connection.READS_AHEAD + 2) * nbd_connection.QEMU_READ_PIECE)
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


# -- the end of a connection -----------------------------------------------------------------------------------------


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
    with FakeServer(lambda asked: None) as server:
        connection = connect(server, request_timeout=120)
        waiting = waiting_threads(connection, 3)
        while connection._handle.in_flight < 3:
            time.sleep(0)
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


def test_interrupted_reader_leaves_its_buffer_alone() -> None:
    """What an interrupted read left in flight must not be written into memory that is used for something else."""
    answered: list[Asked] = []
    with FakeServer(answered.append) as server:
        connection = connect(server)
        handle = connection._handle
        handle._move_bytes_once = interrupted  # type: ignore[method-assign]
        buffer = bytearray(512)
        with pytest.raises(KeyboardInterrupt):
            connection.pread_into(buffer, 0)
        with expect(errno.ECANCELED):
            connection.pread_into(bytearray(1), 0)
        for asked in answered:
            asked.reply(b"late" * 128)
    assert b"late" not in buffer
    buffer.clear()  # nothing holds on to it


def interrupted(timeout: float) -> None:
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


def test_write_goes_on_while_another_thread_waits() -> None:
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

    with FakeServer(answer) as server:
        connection = connect(server, request_timeout=5)
        with futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(connection.pread_into, bytearray(512), 0)
            assert read_seen.wait(10)
            while not connection._handle._polling:  # it leads, and waits
                time.sleep(0)
            connection.pwrite(bytes(32 * MiB), 0)
            reading.result()
        connection.close()


# -- a target --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def target(answer: Callable[[Asked], None], **options: Any) -> Iterator[tuple[FakeServer, nbd.NbdBackend]]:
    with FakeServer(answer, **options) as server, nbd.NbdBackend(server.uri, name="disk") as disk:
        yield server, disk


def block_of(byte: int) -> _core.BlockBuffer:
    blk = _core.BlockBuffer()
    blk.data[:] = bytes([byte]) * MiB
    blk.filled(MiB)
    return blk


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every server for a slow one."""
    monkeypatch.setattr(inflight, "SLOW_WRITE", -1.0)


def test_writes_to_a_slow_server_are_in_flight(slow: None) -> None:
    """Apart from the first write, sixteen are in flight: the server answers none before it has them all."""
    keep = KeepAll(16, lambda kept: kept[::-1])
    first: list[Asked] = []

    def answer(asked: Asked) -> None:
        if not first:
            first.append(asked)
            asked.reply()
        elif asked.type == FLUSH:
            asked.reply()
        else:
            keep(asked)

    with target(answer) as (server, disk):
        for number in range(33):
            disk.write_block(block_of(number + 1), number * MiB, MiB)
        disk.flush()
    assert [asked.data[:1][0] for asked in server.seen if asked.type == WRITE] == list(range(1, 34))
    assert server.counted() == {WRITE: 33, FLUSH: 1, nbd_servers.DISCONNECT: 1}
    assert all(asked.flags == 0 for asked in server.seen), "no FUA: one flush makes all of it stable"


def test_overlapping_writes_are_ordered(slow: None) -> None:
    in_flight: list[tuple[int, int]] = []
    lock = threading.Lock()

    def answer(asked: Asked) -> None:
        with lock:
            mine = (asked.offset, asked.offset + asked.nbytes)
            assert not any(start < mine[1] and mine[0] < stop for start, stop in in_flight)
            in_flight.append(mine)
        threading.Timer(0.002, done, (asked, mine)).start()

    def done(asked: Asked, mine: tuple[int, int]) -> None:
        with lock:
            in_flight.remove(mine)
        asked.reply(bytes(asked.nbytes) if asked.type == READ else b"")

    with target(answer, size=3 * MiB + 1000) as (_, disk):
        for turn in range(30):
            disk.write_block(block_of(turn + 1), (turn % 3) * MiB, MiB)
            disk.write_block(block_of(turn + 1), 2 * MiB + 1000, MiB)
            if turn % 5 == 1:
                disk.read_block(_core.BlockBuffer(), MiB // 2 + turn % 3 * MiB, MiB)
            if turn % 5 == 3:
                disk.write_zeroes(2 * MiB + 77, MiB)
            if turn % 5 == 4:
                disk.pwrite(b"x", turn % 3 * MiB + 5)
        disk.flush()
    assert not in_flight


@pytest.mark.parametrize("bad", [0, 1, 5, 16, 20])
def test_write_error_comes_at_the_latest_with_flush(slow: None, bad: int) -> None:
    def answer(asked: Asked) -> None:
        asked.reply(error=errno.EIO if asked.type == WRITE and asked.offset == bad * MiB else 0)

    with target(answer) as (_, disk):
        with expect(errno.EIO) as caught:
            for number in range(21):
                disk.write_block(block_of(7), number * MiB, MiB)
            disk.flush()
        assert caught.value.offset == bad * MiB
        assert caught.value.device == "disk"


def test_a_forked_child_leaves_the_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """C13: its requests would stand in the middle of its parent's, and its good-bye would end them."""
    monkeypatch.setattr(inflight, "SLOW_WRITE", -1.0)  # so that writes are in flight
    with target(answer_all) as (_, disk):
        disk.write_block(block_of(6), 0, MiB)
        disk.write_block(block_of(7), 0, MiB)
        handle = disk._export.connection._handle
        calls = (lambda: disk.pread(0, 10), lambda: disk.write_block(block_of(7), 0, MiB),
                 disk.rest, disk.flush, lambda: handle.wait(requests.Request(None)))  # fmt: skip
        for lock in (disk._export._writes._lock, handle._lock):
            with lock:  # as a thread of the parent may, when the fork comes
                for call in calls:
                    assert "the connection is the parent process's" in forks.in_a_child(call)
                assert forks.in_a_child(disk.cancel) == ""
                assert forks.in_a_child(disk.close) == ""
        disk.write_block(block_of(7), 0, MiB)
        disk.flush()


def test_a_forked_child_does_not_keep_the_connection_open() -> None:
    """The server must see that its client has gone, although a child lives on."""
    with target(answer_all) as (server, disk):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        disk._export.connection._handle._fail(OSError(errno.EIO, "an end without a good-bye"))
        assert server.has_ended(20)
        os.close(writer)
        assert os.waitpid(child, 0)[1] == 0


def test_zeros_are_zeroed_and_never_trimmed() -> None:
    blk = block_of(9)
    blk.data[128 * KiB : 256 * KiB] = bytes(128 * KiB)
    with target(answer_all) as (server, disk):
        disk.write_block(blk, MiB, MiB)
        disk.write_zeroes(5 * MiB, 600 * MiB)
        disk.flush()
    assert [(asked.type, asked.offset, asked.nbytes) for asked in server.seen[:-1]] == [
        (WRITE, MiB, 128 * KiB),
        (WRITE_ZEROES, MiB + 128 * KiB, 128 * KiB),
        (WRITE, MiB + 256 * KiB, 768 * KiB),
        (WRITE_ZEROES, 5 * MiB, 256 * MiB),
        (WRITE_ZEROES, 261 * MiB, 256 * MiB),
        (WRITE_ZEROES, 517 * MiB, 88 * MiB),
        (FLUSH, 0, 0),
    ]
    assert TRIM not in server.counted()


def test_writer_in_this_process_is_tracked() -> None:
    with target(answer_all) as (server, disk):
        bitmap = disk.create_dirty_bitmap(64 * KiB)
        disk.pwrite(b"x", 5 * MiB + 3)
        disk.pwrite_zeroes(9 * MiB, 10)
        assert [block for block in range(1024) if bitmap.is_dirty(block)] == [5, 9]
        disk.hold_writers()
        disk.release_writers(refuse=True)
        with pytest.raises(errors.DeviceError, match="moved"):
            disk.pwrite(b"x", 0)
    assert server.counted()[WRITE] == 1


def test_new_tracker_and_marks_forget_what_was_asked() -> None:
    """A hole seen before a write must not be believed after the write's mark was cleared."""

    class Forgetful:
        forgotten = 0

        def forget(self) -> None:
            self.forgotten += 1
            assert not any(bitmap.is_dirty(0) for bitmap in bitmaps), "it was marked before it was forgotten"

    bitmaps: list[dirty.DirtyBitmap] = []
    with target(answer_all) as (_, disk):
        disk._export.extents = known = Forgetful()  # type: ignore[assignment]
        bitmaps.append(disk.create_dirty_bitmap(MiB))
        assert known.forgotten == 1
        for write in (lambda: disk.pwrite(b"x", 5), lambda: disk.pwrite_zeroes(5, 1), lambda: disk.mark_dirty(5, 1)):
            before = known.forgotten
            write()
            assert known.forgotten > before
            assert bitmaps[0].take_block(0)


def test_outside_is_refused_and_reads_past_the_end_are_zeros() -> None:
    with target(answer_all, size=MiB + 512) as (server, disk):
        blk = block_of(1)
        with pytest.raises(errors.DeviceError, match="outside"):
            disk.write_block(blk, MiB, 1024)
        with pytest.raises(errors.DeviceError, match="outside"):
            disk.write_zeroes(MiB, 1024)
        assert not disk.read_block(blk, MiB, MiB)
        assert blk.data[:512] == contents_at(MiB, 512)
        assert blk.data[512:] == bytes(MiB - 512)
        assert disk.read_block(blk, 2 * MiB, MiB)
        assert not any(blk.data)
        disk.pwrite(b"", 5)
        disk.pwrite_zeroes(5, 0)
        assert disk.pread(5, 0) == b""
    assert server.counted() == {READ: 1, nbd_servers.DISCONNECT: 1}


@pytest.mark.parametrize("options", [{"read_only": True}, {"writable": False}])
def test_opened_for_reading_only(options: dict[str, Any]) -> None:
    with FakeServer(answer_all) as server, nbd.NbdBackend(server.uri, **options) as disk:
        assert disk.is_read_only == ("read_only" in options)
        for write in (
            lambda: disk.write_block(block_of(1), 0, MiB),
            lambda: disk.write_zeroes(0, 512),
            lambda: disk.pwrite(b"x", 0),
        ):
            with pytest.raises(errors.DeviceError, match="read"):
                write()
    assert server.counted() == {nbd_servers.DISCONNECT: 1}


def test_read_only_export() -> None:
    flags = nbd_servers.READ_ONLY
    with FakeServer(answer_all, flags=flags) as server, pytest.raises(errors.DeviceError, match="read-only"):
        nbd.NbdBackend(server.uri)
    with FakeServer(answer_all, flags=flags) as server, nbd.NbdBackend(server.uri, writable=False) as disk:
        assert disk.pread(8, 4) == contents_at(8, 4)
        assert not disk.is_read_only, "it is migrated: only a guest's read-only disk is not"


def test_closed_disk() -> None:
    with target(answer_all) as (_, disk):
        disk.close()
        disk.close()
        with pytest.raises(errors.DeviceError):
            disk.read_block(block_of(1), 0, MiB)
        with pytest.raises(errors.DeviceError):
            disk.write_block(block_of(1), 0, MiB)
        with pytest.raises(errors.DeviceError):
            disk.flush()


# -- the library -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["libnbd.so.does-not-exist", "libc.so.6"])
def test_missing_library_names_the_package(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr(_libnbd, "LIBRARY", library)
    _libnbd.load.cache_clear()
    try:
        with pytest.raises(errors.DeviceError, match=r"libnbd0 .*Debian.* libnbd .*Fedora"):
            nbd.NbdBackend("nbd://localhost/")
    finally:
        _libnbd.load.cache_clear()


def test_library_is_loaded_late() -> None:
    code = "import sys, blkmig; sys.exit('ctypes' in sys.modules or 'blkmig.nbd.backend' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_memory_of_any_buffer() -> None:
    data = bytearray(b"abc")
    memory = _libnbd.Memory(data, writable=True)
    assert ctypes.string_at(memory.address or 0, memory.nbytes) == b"abc"
    with pytest.raises(BufferError):
        data.append(1)
    del memory
    data.append(1)
    assert _libnbd.Memory(memoryview(b"12345")[1:4], writable=False).nbytes == 3
    with pytest.raises(BufferError):
        _libnbd.Memory(b"read-only", writable=True)
    with pytest.raises(BufferError):
        _libnbd.Memory(memoryview(bytearray(8))[::2], writable=True)
