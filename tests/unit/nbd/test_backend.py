# SPDX-License-Identifier: GPL-2.0-or-later
"""An NBD export as a disk: written behind, in order, tracked, and told apart where it cannot be used."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import forks
import nbd_servers
import pytest
from nbd_requests import KeepAll, answer_all, connect, contents_at, expect
from nbd_servers import FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, Asked, FakeServer
from pauses import inside

from blkmig import _core, errors
from blkmig.disk import dirty
from blkmig.nbd import _libnbd, extents, inflight, requests
from blkmig.nbd import backend as nbd

nbd_servers.require_libnbd()


MiB = 1 << 20
KiB = 1 << 10


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
        calls = (lambda: disk.pread(0, 10), lambda: disk.write_block(block_of(7), 0, MiB), disk.rest, disk.flush)
        with inside(requests.Requests, "add", lambda: disk.write_block(block_of(8), 0, MiB)):
            for call in calls:
                assert "the connection is the parent process's" in forks.in_a_child(call)
            assert forks.in_a_child(disk.cancel) == ""
            assert forks.in_a_child(disk.close) == ""
        disk.write_block(block_of(7), 0, MiB)
        disk.flush()


def test_a_forked_child_waits_for_no_answer() -> None:
    """C13: not to a request that its parent has started."""
    with FakeServer(answer_all) as server, contextlib.closing(connect(server)) as connection:
        request = connection.start_write(bytearray(512), 0)
        assert request is not None
        with inside(requests.Requests, "add", lambda: connection.pwrite(b"x", MiB)):
            said = forks.in_a_child(lambda: connection.finish_write(request, 0, 512))
        assert "the connection is the parent process's" in said
        connection.finish_write(request, 0, 512)


def test_a_forked_child_does_not_keep_the_connection_open() -> None:
    """The server must see that its client has gone, although a child lives on."""
    with target(lambda asked: server.send(b"nonsense" * 4)) as (server, disk):
        with forks.living_child():
            with pytest.raises(errors.DeviceError):
                disk.pread(0, 512)  # an end without a good-bye
            assert server.has_ended(20)


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


@pytest.mark.parametrize("granularity", [4 * KiB, 64 * KiB, MiB])
def test_writer_in_this_process_is_tracked(granularity: int) -> None:
    with target(answer_all) as (server, disk):
        bitmap = disk.create_dirty_bitmap(granularity)
        disk.pwrite(b"x", 5 * MiB + 3)
        disk.pwrite_zeroes(9 * MiB, 10)
        assert bitmap.take_areas() == [(5 * MiB, granularity), (9 * MiB, granularity)]
        disk.hold_writers()
        disk.release_writers(refuse=True)
        with pytest.raises(errors.DeviceError, match="moved"):
            disk.pwrite(b"x", 0)
    assert server.counted()[WRITE] == 1


def test_new_tracker_and_marks_forget_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole seen before a write must not be believed after the write's mark was cleared."""
    forgotten = 0

    def forget(_: extents.Extents) -> None:
        nonlocal forgotten
        forgotten += 1
        assert not any(bitmap.is_dirty(0) for bitmap in bitmaps), "it was marked before it was forgotten"

    monkeypatch.setattr(extents.Extents, "forget", forget)
    bitmaps: list[dirty.DirtyBitmap] = []
    with target(answer_all) as (_, disk):
        bitmaps.append(disk.create_dirty_bitmap(MiB))
        assert forgotten == 1
        for write in (lambda: disk.pwrite(b"x", 5), lambda: disk.pwrite_zeroes(5, 1), lambda: disk.mark_dirty(5, 1)):
            before = forgotten
            write()
            assert forgotten > before
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


EXTENTS = [(number * 5 * KiB, 512 * (number % 3 + 1)) for number in range(40)]


def test_extents_are_read_together() -> None:
    """Eight requests are in flight before any is answered; what lies past the end is zeros."""
    keep = KeepAll(8, lambda kept: kept[::-1])
    with target(keep, size=199 * KiB) as (_, disk):
        blk = block_of(0xEE)
        disk.read_extents(blk, [*EXTENTS[:39], (199 * KiB - 512, 1024)])
        wanted = b"".join(contents_at(offset, nbytes) for offset, nbytes in EXTENTS[:39])
        wanted += contents_at(199 * KiB - 512, 512) + bytes(512)
        assert blk.payload[: len(wanted)] == wanted
        assert not blk.is_zero


@pytest.mark.parametrize("speed", ["slow", "quick"])
def test_extents_are_written_together(speed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen are in flight, however quick the server is, and all are done when the call returns."""
    monkeypatch.setattr(inflight, "SLOW_WRITE", -1.0 if speed == "slow" else 1000.0)
    keep = KeepAll(16, lambda kept: kept[::-1])
    with target(keep) as (server, disk):
        blk = block_of(7)
        blk.data[:] = bytes(range(256)) * 4096
        blk.gathered()
        disk.write_extents(blk, EXTENTS[:32])
        written = {asked.offset: asked.data for asked in server.seen if asked.type == WRITE}
        done = 0
        for offset, nbytes in EXTENTS[:32]:
            assert written[offset] == blk.payload[done : done + nbytes]
            done += nbytes


def test_extents_come_behind_a_block_that_is_in_flight(slow: None) -> None:
    """What overlaps a block that is on its way is written when that is done; so the order on the server is ours."""
    with target(answer_all) as (server, disk):
        for _ in range(3):
            disk.write_block(block_of(1), 0, MiB)
            disk.write_extents(block_of(2), [(4096, 512), (MiB - 512, 512)])
        kinds = [(asked.offset, asked.nbytes) for asked in server.seen if asked.type == WRITE]
        assert kinds == [(0, MiB), (4096, 512), (MiB - 512, 512)] * 3


def test_an_extent_that_fails_is_named() -> None:
    def fail_at(asked: Asked) -> None:
        asked.reply(error=errno.EIO) if asked.offset == 5 * KiB else answer_all(asked)

    with target(fail_at) as (_, disk):
        for call in (disk.read_extents, disk.write_extents):
            with expect(errno.EIO) as caught:
                call(block_of(1), EXTENTS)
            assert (caught.value.device, caught.value.offset, caught.value.nbytes) == ("disk", 5 * KiB, 1024)
        disk.write_extents(block_of(1), EXTENTS[2:])


def test_an_extent_outside_is_not_written() -> None:
    with target(answer_all, size=MiB) as (server, disk):
        with pytest.raises(errors.DeviceError, match="outside the disk"):
            disk.write_extents(block_of(1), [(0, 512), (MiB - 512, 1024)])
        assert not [asked for asked in server.seen if asked.type == WRITE]
