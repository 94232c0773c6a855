# SPDX-License-Identifier: GPL-2.0-or-later
"""The last that a receiver says: its word that everything is on stable storage, or the reason why it is not."""

from __future__ import annotations

import contextlib
import errno
import queue
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
import pytest
import savevm_streams as streams
import sim

import blkmig
from blkmig import _core, errors
from blkmig.migration import farewell, heartbeat

MIB = lab.MIB
PATIENCE = 20.0
CONTENT = random.Random(11).randbytes(2 * MIB)
SHUT_OK = struct.pack(">HHI", 1, 4, 0)


class Target(blkmig.MemoryBackend):
    """A target whose flush and reads wait for the test, and whose reads may find something else."""

    def __init__(self, nbytes: int = len(CONTENT)) -> None:
        super().__init__(bytearray(nbytes), name="t")
        self.may_flush = threading.Event()
        self.may_read = threading.Event()
        self.is_flushing = threading.Event()
        self.is_rotten = False
        self.write_error: OSError | None = None

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        if self.write_error is not None:
            raise self.failed("cannot write", self.write_error, offset, nbytes) from self.write_error
        super().write_block(blk, offset, nbytes)

    def flush(self) -> None:
        self.is_flushing.set()
        assert self.may_flush.wait(PATIENCE), "nothing came of it while the target was flushed"

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        assert self.may_read.wait(PATIENCE), "the target is read back before the word"
        is_zero = super().read_block(blk, offset, nbytes)
        if self.is_rotten:
            blk.data[7] ^= 1
        return is_zero


def asking(stream: bytes) -> bytes:
    """Return a recorded stream with the command that opens the return path."""
    return stream[:13] + streams.command(1) + stream[13:]


@pytest.fixture
def stream(tmp_path: Path) -> bytes:
    with blkmig.MemoryBackend(bytearray(CONTENT), name="d") as disk:
        return asking(lab.record(tmp_path, [disk], digests=True))


@contextlib.contextmanager
def receiving(target: Any, name: str = "d", **options: Any) -> Iterator[tuple[lab.Receiver, socket.socket]]:
    """Give a receiver and a connection of a source to it, over TCP."""
    receiver = lab.Receiver("tcp:127.0.0.1:0", {name: target}, **options)
    _, host, port = receiver.uri.split(":")
    with socket.create_connection((host, int(port))) as source:
        source.settimeout(PATIENCE)
        yield receiver, source
        receiver.join()


def read_exactly(source: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        piece = source.recv(nbytes - len(data))
        assert piece, f"the receiver closed the link after {data!r}"
        data += piece
    return data


def test_the_word_comes_before_the_disks_are_read_back(tmp_path: Path) -> None:
    """B2: nothing that grows with the disk happens while the source waits; what is verified, is so afterwards."""
    target = Target()
    target.may_flush.set()

    def drive(migration: blkmig.OutgoingMigration) -> None:
        migration.run()
        target.may_read.set()

    with blkmig.MemoryBackend(bytearray(CONTENT), name="d") as disk:
        _, received = lab.migrate(tmp_path, "tcp", [disk], {"d": target}, drive=drive, digests=True,
                                  receive={"verify": True}, writers_after="refuse", format="block")  # fmt: skip
    assert received.disks["d"].verified


def test_a_mismatch_after_the_word_is_told_with_what_was_said(stream: bytes) -> None:
    """B2: exit 3 at the receiver, and its message tells that the source has had the word."""
    target = Target()
    target.may_flush.set()
    target.is_rotten = True
    with receiving(target, verify=True) as (receiver, source):
        source.sendall(stream)
        assert read_exactly(source, 8) == SHUT_OK
        source.close()
        target.may_read.set()
        with pytest.raises(errors.ContentMismatch) as caught:
            receiver.result()
    assert caught.value.exit_code == 3
    assert any("told before that everything is on stable storage" in note for note in caught.value.__notes__)
    assert receiver.migration.stats.status == "failed"
    assert not receiver.migration.stats.disks["d"].verified


def test_what_cannot_be_verified_is_told_before_the_word(tmp_path: Path) -> None:
    """A6: a stream without digests and --verify: the source hears of a failure, and nobody of success."""
    with blkmig.MemoryBackend(bytearray(CONTENT), name="d") as disk:
        plain = asking(lab.record(tmp_path, [disk]))
    with receiving(Target(), verify=True) as (receiver, source):
        source.sendall(plain)
        assert struct.unpack(">HHI", read_exactly(source, 8)) == (1, 4, errno.ENOKEY)
        source.close()
        with pytest.raises(errors.ContentMismatch, match="no digest"):
            receiver.result()


@pytest.mark.parametrize("verify", [False, True])
def test_a_source_that_reset_the_link_makes_nothing_complete(stream: bytes, verify: bool) -> None:
    """A2: it gave up after the end of its stream, its writers may go on: the receiver must not say "complete"."""
    target = Target()
    target.may_read.set()
    with receiving(target, verify=verify) as (receiver, source):
        source.sendall(stream)
        assert target.is_flushing.wait(PATIENCE)
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        source.close()
        target.may_flush.set()
        with pytest.raises(errors.MigrationError) as caught:
            receiver.result()
    assert caught.value.exit_code == 5
    assert receiver.migration.stats.status == "failed"
    assert "the source has given up" in str(caught.value)


def test_signs_of_life_while_the_target_is_flushed(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """B2: a source that waits for the word hears PONGs; they end before the word."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    target = Target()
    with receiving(target) as (receiver, source):
        source.sendall(stream)
        for _ in range(3):
            assert struct.unpack(">HHI", read_exactly(source, 8))[:2] == (2, 4)
        target.may_flush.set()
        while (message := read_exactly(source, 8)) != SHUT_OK:
            assert struct.unpack(">HHI", message)[:2] == (2, 4)
        source.close()
        assert receiver.result().status == "completed"


def test_a_heartbeat_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that reads nothing keeps no thread: beats are left out, and an error ends those of its ``with``."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.001)
    beats: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()

    def beat(value: int, text: str) -> None:
        beats.put((value, text))
        if text == "broken":
            raise errors.MigrationError("the link broke")

    def the_threads() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "blkmig-heartbeat"]

    with contextlib.closing(heartbeat.Heartbeat(beat)) as beating:
        assert not the_threads()
        with beating:
            beating.text = "broken"
            while beats.get(timeout=30) != (0, "broken"):
                pass
        [thread] = the_threads()
        with beating:  # of another link
            beating.done = 3
            while beats.get(timeout=30) != (3, ""):
                pass
        assert the_threads() == [thread]
        while not beats.empty():
            beats.get()
        before = thread.is_alive()
    assert before
    assert not thread.is_alive()
    assert beats.empty(), "behind the with"


@pytest.mark.parametrize(
    ("target", "name", "reason"),
    [("full", "d", errno.ENOSPC), ("other", "e", errno.ENODEV), ("small", "d", errno.EFBIG)],
)
def test_the_reason_reaches_a_source_that_goes_on_sending(stream: bytes, target: str, name: str, reason: int) -> None:
    """C11, E13: the reason is in SHUT, and the rest of the stream is drained so that no reset overtakes it."""
    backend = Target(MIB if target == "small" else len(CONTENT))
    backend.write_error = OSError(errno.ENOSPC, "No space left on device") if target == "full" else None
    with receiving(backend, name) as (receiver, source):
        source.sendall(stream[: MIB + 1000])
        source.sendall(stream[MIB + 1000 :])
        assert struct.unpack(">HHI", read_exactly(source, 8)) == (1, 4, reason)
        assert source.recv(1) == b"", "nothing more will be said"
        source.close()
        with pytest.raises(errors.MigrationError):
            receiver.result()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.DeviceError("cannot write", device="d", cause=OSError(errno.EROFS, "")), errno.EROFS),
        (errors.DeviceError("is too small", device="d", cause="it is"), 1),
        (errors.TruncatedStream("cut", position=1), errno.EBADMSG),
        (errors.Cancelled("cancelled"), errno.ECANCELED),
        (errors.IncompleteMigration("blocks", missing={}), errno.ENODATA),
        (KeyboardInterrupt(), 1),
    ],
)
def test_the_status_of_an_error(error: BaseException, status: int) -> None:
    """C11."""
    assert farewell.status_of(error) == status


# -- the base ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("wrong", [None, 0, 3 * MIB + 5, 5 * MIB])
def test_the_digest_covers_the_base(tmp_path: Path, wrong: int | None, reading: str) -> None:
    """A13: ``--incremental --verify`` onto a wrong base is exit 3, wherever it differs; onto the right one it is
    verified, also where a block was written that only the base held."""
    base = random.Random(12).randbytes(2 * MIB) + bytes(2 * MIB) + random.Random(13).randbytes(MIB + 700)
    disk = sim.LayeredDisk(base, base=base, name="d")
    disk.write(b"top", MIB)

    def drive(migration: blkmig.OutgoingMigration) -> None:
        while migration.pending():
            migration.iterate()
        disk.write(b"late", 2 * MIB + 9)
        migration.complete()

    (tmp_path / "stream").write_bytes(
        lab.record(tmp_path, [disk], drive, digests=True, shared_base=True, reading=reading)
    )
    held = bytearray(base)
    if wrong is not None:
        held[wrong] ^= 0x40
    target = blkmig.MemoryBackend(held, name="t")
    if wrong is None:
        received = blkmig.receive(f"file:{tmp_path}/stream", {"d": target}, incremental=True, verify=True)
        assert received.disks["d"].verified
        assert held == disk.image
        return
    with pytest.raises(errors.ContentMismatch, match="the source's base") as caught:
        blkmig.receive(f"file:{tmp_path}/stream", {"d": target}, incremental=True, verify=True)
    assert caught.value.exit_code == 3
