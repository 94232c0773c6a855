# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever breaks is said, with where and why; the source stays in use and nothing stays behind."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import lab
import model
import pytest
from faulty import faulty_disk, is_free

import blkmig
from blkmig import errors, testing

MIB = lab.MIB


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("phase", ["bulk", "dirty", "last pass"])
def test_read_error_at_the_source(tmp_path: Path, reading: str, phase: str) -> None:
    disk = faulty_disk(b"x" * 6 * MIB)

    def drive(migration: blkmig.OutgoingMigration) -> None:
        if phase != "bulk":
            migration.iterate()
        disk.inject(testing.Fault(verb="read", offset=3 * MIB, times=None, error=errno.EIO))
        disk.mark_dirty(3 * MIB, 1)
        if phase != "last pass":
            migration.run()
        migration.complete()

    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    with pytest.raises(errors.DeviceError) as caught:  # noqa: PT012 - from whichever step comes upon it
        migration = blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(reading=reading))
        with migration:
            drive(migration)
    assert (caught.value.device, caught.value.offset, caught.value.errno) == ("d", 3 * MIB, errno.EIO)
    assert migration.status == "failed"
    with pytest.raises(errors.SourceReadError):
        receiver.result()
    assert is_free(disk)


@pytest.mark.parametrize("fault", [{"writes": 2 * MIB}, {"flushes": True}])
def test_write_error_at_the_target_reaches_both_ends(tmp_path: Path, fault: dict[str, int]) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * 40 * MIB), name="d")
    target = faulty_disk(bytes(40 * MIB), **fault)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target})
    with pytest.raises(errors.MigrationError) as sender_side:
        blkmig.send([disk], receiver.uri)
    with pytest.raises(errors.DeviceError) as receiver_side:
        receiver.result()
    assert receiver_side.value.errno in (errno.ENOSPC, errno.EIO)
    assert "target" in str(sender_side.value) or isinstance(sender_side.value, errors.ChannelError)
    assert receiver.migration.stats.status == "failed"
    assert is_free(disk)


@pytest.mark.parametrize("bad_block", [3, 11])
def test_a_block_that_is_stored_behind_and_cannot_be(tmp_path: Path, bad_block: int) -> None:
    """Pages of a file: the last block's failure is noticed when there is nothing more to store."""
    (tmp_path / "s.raw").write_bytes(random.Random(bad_block).randbytes(12 * MIB))
    (tmp_path / "t.raw").write_bytes(b"x" * 12 * MIB)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d", writable=False) as disk:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bad_block * MIB + 4096, old[1]))
        try:
            with pytest.raises(errors.MigrationError):
                blkmig.send([disk], receiver.uri)
            with pytest.raises(errors.DeviceError) as caught:
                receiver.result()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (caught.value.device, caught.value.offset, caught.value.errno) == ("d", bad_block * MIB, errno.EFBIG)
    assert receiver.migration.stats.status == "failed"


def test_what_cannot_be_a_target_is_known_before_anybody_connects(tmp_path: Path) -> None:
    """C16."""
    for path in ("/dev/full", tmp_path, tmp_path / "missing" / "t.raw", tmp_path / ("x" * 300)):
        with pytest.raises(errors.DeviceError, match=str(path)):
            lab.Receiver("tcp:127.0.0.1:0", {"d": path})


class Cutter:
    """A TCP peer that takes `nbytes` and then goes away."""

    def __init__(self, nbytes: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.uri = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, args=(nbytes,), daemon=True)
        self._thread.start()

    def _run(self, nbytes: int) -> None:
        with self._server, self._server.accept()[0] as connection:
            while nbytes > 0 and (piece := connection.recv(min(nbytes, 65536))):
                nbytes -= len(piece)

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_peer_gone_at_every_record(tmp_path: Path) -> None:
    """Cut at each record's start, one byte into it, and in the middle of a payload."""
    disk = blkmig.MemoryBackend(bytearray(b"x" * 2 * MIB + bytes(MIB) + b"y" * 1000), name="d")
    stream = lab.record(tmp_path, [disk])
    assert model.parse(stream).disk("d", disk.size) == disk.pread(0, disk.size)
    word = stream.find((1).to_bytes(8, "big") + b"\x01d")
    cuts = {0, 1, 4, 8, 13, 40, word, word + 1, word + 9, word + 10, word + MIB, len(stream) - 5, len(stream) - 1}
    for cut in sorted(cuts):
        cutter = Cutter(cut)
        with pytest.raises(errors.ChannelError) as caught:
            blkmig.send([disk], cutter.uri, connect_timeout=10, format="block")
        assert caught.value.exit_code == 5
        cutter.join()
        assert is_free(disk), f"cut at {cut}"


def test_nobody_listens(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(512), name="d")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(errors.ChannelError) as caught:
            blkmig.send([disk], f"tcp:127.0.0.1:{unused.getsockname()[1]}", connect_timeout=5)
    assert caught.value.errno == errno.ECONNREFUSED
    assert is_free(disk)


def test_unknown_disk(tmp_path: Path) -> None:
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * MIB), name="vda")])
    (tmp_path / "stream").write_bytes(stream)
    with pytest.raises(errors.UnknownDevice, match="disk 'vda', but targets were given for 'vdb'") as caught:
        blkmig.receive(f"file:{tmp_path}/stream", {"vdb": tmp_path / "t.raw"})
    assert caught.value.device == "vda"
    assert stream[caught.value.position : caught.value.position + 12].endswith(b"vda")
    assert not (tmp_path / "t.raw").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", "a\nb", "\u0000"])
def test_names_do_not_escape_the_folder(tmp_path: Path, name: str) -> None:
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * 512), name="vda")])
    encoded = name.encode()
    stream = stream.replace(b"\x03vda", bytes([len(encoded)]) + encoded)
    (tmp_path / "stream").write_bytes(stream)
    with pytest.raises(errors.ParameterError, match="say where it goes"):
        blkmig.receive(f"file:{tmp_path}/stream", into=tmp_path / "into")
    assert not list(tmp_path.glob("**/*.raw"))


def test_target_too_small(tmp_path: Path) -> None:
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * 3 * MIB), name="d")])
    (tmp_path / "stream").write_bytes(stream)
    (tmp_path / "t.raw").write_bytes(b"k" * 2 * MIB)
    said = "is too small: it has 2097152 bytes, and the disk 3145728, as the source"
    with pytest.raises(errors.DeviceError, match=f"t.raw' {said}"):
        blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t.raw"})
    assert (tmp_path / "t.raw").read_bytes() == b"k" * 2 * MIB


def test_larger_target_keeps_its_rest_if_told_to(tmp_path: Path) -> None:
    content = lab.random_disk(random.Random(1), 2 * MIB + 512)
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(content), name="d")])
    (tmp_path / "stream").write_bytes(stream)
    (tmp_path / "t.raw").write_bytes(b"k" * 4 * MIB)
    received = blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t.raw"}, keep_tail=True)
    assert received.disks["d"].size == len(content)
    [note] = received.notes
    assert "the rest keeps what it held" in note
    assert (tmp_path / "t.raw").read_bytes() == content + b"k" * (2 * MIB - 512)


def test_missing_blocks_are_named(tmp_path: Path) -> None:
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * 5 * MIB), name="d")])
    for block in (1, 2, 4):
        start = stream.find((block * MIB | 1).to_bytes(8, "big") + b"\x01d")
        stream = stream[:start] + stream[start + 10 + MIB :]
    (tmp_path / "stream").write_bytes(stream)
    with pytest.raises(errors.IncompleteMigration, match=r"3 blocks .*blocks 1-2, 4") as caught:
        blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t.raw"})
    assert caught.value.missing == {"d": [(1, 2), (4, 1)]}
    assert caught.value.exit_code == 3


# -- cancel -----------------------------------------------------------------------------------------------------------


def cancel_after(step: int) -> Callable[[blkmig.OutgoingMigration], None]:
    """Return a drive that cancels after so many steps."""

    def drive(migration: blkmig.OutgoingMigration) -> None:
        for number in range(step + 1):
            if number == step:
                migration.cancel()
            migration.iterate()
        migration.complete()

    return drive


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_cancel_at_each_step(tmp_path: Path, reading: str, step: int) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * 9 * MIB), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    migration = blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(reading=reading, max_bandwidth="4M"))
    with pytest.raises(errors.Cancelled), migration:
        cancel_after(step)(migration)
    assert migration.status == "cancelled"
    assert is_free(disk)
    with pytest.raises(errors.MigrationError):
        receiver.result()
    migration.cancel()


def test_cancel_before_and_after(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(MIB), name="d")
    early = blkmig.outgoing([disk], f"file:{tmp_path}/x")
    early.cancel()
    with pytest.raises(errors.Cancelled), early:
        pass
    late = blkmig.outgoing([disk], f"file:{tmp_path}/y")
    with late:
        late.run()
    late.cancel()
    assert late.status == "completed"
    assert is_free(disk)


@pytest.mark.parametrize("how", ["thread", "signal"])
def test_cancel_while_blocked_in_the_channel(tmp_path: Path, how: str) -> None:
    """The peer takes nothing: the migration thread hangs in a send until somebody cancels."""
    disk = blkmig.MemoryBackend(bytearray(b"x" * 64 * MIB), name="d")
    with socket.create_server(("127.0.0.1", 0)) as server:
        migration = blkmig.outgoing([disk], f"tcp:127.0.0.1:{server.getsockname()[1]}")
        old = signal.signal(signal.SIGUSR1, lambda *_: migration.cancel())

        def act() -> None:
            while migration.stats.status != "active":
                threading.Event().wait(0.005)
            threading.Event().wait(0.05)
            if how == "thread":
                migration.cancel()
            else:
                os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=act)
        thread.start()
        try:
            with pytest.raises(errors.Cancelled), migration:
                migration.run()
        finally:
            thread.join()
            signal.signal(signal.SIGUSR1, old)
    assert is_free(disk)


def test_cancel_while_connecting(tmp_path: Path) -> None:
    """The peer's queue is full, so connecting hangs until somebody cancels."""
    with socket.socket() as server, contextlib.ExitStack() as others:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        for _ in range(4):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(address)
        migration = blkmig.outgoing([blkmig.MemoryBackend(bytearray(1), name="d")], f"tcp:127.0.0.1:{address[1]}")
        threading.Timer(0.2, migration.cancel).start()
        with pytest.raises(errors.Cancelled), migration:
            pass
    assert migration.status == "cancelled"


def test_leaving_early_is_a_cancel(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    with blkmig.outgoing([disk], f"file:{tmp_path}/x") as migration:
        migration.iterate()
    assert migration.status == "cancelled"
    assert is_free(disk)


def test_cancel_a_receiver_that_waits(tmp_path: Path) -> None:
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    receiver.migration.cancel()
    with pytest.raises(errors.Cancelled):
        receiver.result()


# -- convergence ------------------------------------------------------------------------------------------------------


class NeverClean(blkmig.MemoryBackend):
    """A disk that is wholly dirty again whenever a round begins."""

    def sync_dirty(self) -> None:
        self.mark_dirty(0, self.size)


@pytest.mark.parametrize("limits", [{"max_rounds": 3}, {"timeout": 0.3}])
def test_giving_up_leaves_the_source_in_use(tmp_path: Path, limits: dict[str, float]) -> None:
    disk = NeverClean(bytearray(b"x" * 16 * MIB), name="d")
    with pytest.raises(errors.NotConverged) as caught:
        lab.migrate(tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, downtime_limit=0, **limits)
    assert caught.value.exit_code == 4
    assert caught.value.pending > 0
    assert caught.value.bandwidth > 0
    assert is_free(disk)


def test_switchover_is_the_callers(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * 3 * MIB), name="d")

    def drive(migration: blkmig.OutgoingMigration) -> None:
        def act() -> None:
            while len(migration.stats.rounds) < 2:  # with nothing to send, there is no round (E4)
                threading.Event().wait(0.01)
            migration.switchover()

        thread = threading.Thread(target=act)
        thread.start()
        migration.run()
        thread.join()

    sent, _ = lab.migrate(
        tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, drive=drive, switchover="manual"
    )
    assert len(sent.rounds) >= 3
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)
