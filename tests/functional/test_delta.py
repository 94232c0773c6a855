# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that hold an old copy of their disk: what differs comes, and both ends are equal."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cutter
import lab
import pytest
import tapped

import blkmig
from blkmig import errors, savevm, stats
from blkmig.migration import comparing

MIB = lab.MIB
PAGE = 4096
TWO_WAY = ("tcp", "unix", "socket")


def old_of(rng: random.Random, new: bytes, size: int) -> bytes:
    """Return an old copy of a disk, of `size` bytes: pages, bytes, blocks and holes of it are others."""
    old = bytearray(new.ljust(size, b"\0")[:size])
    for _ in range(rng.randrange(6)):
        nbytes = min(size, rng.choice((1, PAGE, 70_000, MIB)))
        at = rng.randrange(size - nbytes + 1) if size else 0
        old[at : at + nbytes] = rng.choice((rng.randbytes(nbytes), bytes(nbytes)))
    return bytes(old)


def modes(tmp_path: Path, old: bytes) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the target and the parameters of each way to use an old copy."""
    yield tmp_path / "new.raw", {"delta": {"d": str(lab.sparse_file(tmp_path / "old.raw", old))}}
    yield lab.sparse_file(tmp_path / "place.raw", old), {"in_place": True}


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("kind", TWO_WAY)
@pytest.mark.parametrize("seed", range(8))
def test_random_disks_and_old_copies(tmp_path: Path, kind: str, seed: int, reading: str) -> None:
    rng = random.Random(seed)
    new = lab.random_disk(rng, rng.choice(lab.SIZES))
    old = old_of(rng, new, rng.choice((len(new), len(new), rng.choice(lab.SIZES), 0)))
    for target, options in modes(tmp_path, old):
        disk = blkmig.MemoryBackend(bytearray(new), name="d")
        sent, came = lab.migrate(tmp_path, kind, [disk], {"d": target}, receive=options, reading=reading)
        assert target.read_bytes() == new, f"seed {seed}, {len(old)} of {len(new)} bytes, {options}"
        assert sent.format == came.format == "blkmig"
        assert came.disks["d"].size == len(new)
        assert not [*tmp_path.glob(".*")]
    assert (tmp_path / "old.raw").read_bytes() == old


@pytest.mark.parametrize("seed", range(4))
def test_several_disks_and_no_zero_blocks(tmp_path: Path, seed: int) -> None:
    """One has an old copy, one is new, one has no bytes; zeros may go as data."""
    rng = random.Random(seed)
    contents = {name: lab.random_disk(rng, rng.choice(lab.SIZES)) for name in ("a", "b", "c")} | {"empty": b""}
    lab.sparse_file(tmp_path / "old", old_of(rng, contents["b"], len(contents["b"])))
    disks: list[blkmig.BlockBackend] = [blkmig.MemoryBackend(bytearray(each), name=n) for n, each in contents.items()]
    targets = {name: tmp_path / f"{name}.raw" for name in contents}
    receive = {"delta": {"b": tmp_path / "old"}}
    lab.migrate(tmp_path, "unix", disks, targets, receive=receive, zero_blocks=rng.random() < 0.5)
    for name, each in contents.items():
        assert targets[name].read_bytes() == each


def migrated(
    tmp_path: Path, new: bytes, old: bytes, *, name: str = "t", **parameters: Any
) -> tuple[tapped.Tap, stats.OutgoingStatistics, stats.IncomingStatistics]:
    """Send `new` over `old`; return what passed, and what both ends say."""
    target = tmp_path / f"{name}.raw"
    target.write_bytes(old)
    receiver = lab.Receiver(f"unix:{tmp_path}/receiver", {"d": target}, in_place=True)
    tap = tapped.Tap(tmp_path, receiver.uri)
    disk = blkmig.MemoryBackend(bytearray(new), name="d")
    with blkmig.outgoing([disk], tap.uri, blkmig.MigrationParameters(**parameters)) as outgoing:
        outgoing.run()
    tap.join()
    came = receiver.result()
    assert target.read_bytes() == new
    return tap, outgoing.stats, came


DISK = 128 * MIB


def scattered(nbytes: int, count: int, *, shift: int = 0) -> tuple[bytes, bytes]:
    """Return a disk, and an old copy of which that many pieces of `nbytes` differ."""
    rng = random.Random(3)
    new = rng.randbytes(DISK)
    old = bytearray(new)
    for number in rng.sample(range(DISK // nbytes - 1), count):
        at = number * nbytes + shift
        old[at : at + nbytes] = rng.randbytes(nbytes)
    return new, bytes(old)


def test_what_runs_cost(tmp_path: Path) -> None:
    """Runs of 1 MiB that lie anywhere cost 1.2 times what they are, digests of all of the disk included."""
    new, old = scattered(MIB, 2, shift=300 * 1024)
    tap, sent, came = migrated(tmp_path, new, old)
    assert tap.nbytes <= 1.2 * 2 * MIB
    assert sent.same_bytes == came.disks["d"].same_bytes == DISK - 2 * MIB


def test_what_scattered_pages_cost(tmp_path: Path) -> None:
    new, old = scattered(PAGE, 100)
    tap, sent, _ = migrated(tmp_path, new, old)
    assert tap.nbytes <= 1 * MIB
    assert sent.same_bytes == DISK - 100 * PAGE
    assert 0 < sent.packs <= 100


def test_what_equal_disks_cost(tmp_path: Path) -> None:
    new = random.Random(4).randbytes(DISK)
    tap, sent, came = migrated(tmp_path, new, new)
    assert tap.nbytes <= 16 * 1024
    assert sent.blocks == came.disks["d"].blocks == 0
    assert sent.same_bytes == DISK


def test_holes_are_not_asked_for(tmp_path: Path) -> None:
    with (tmp_path / "s.raw").open("wb") as file:
        file.truncate(DISK)
        file.write(b"x")
    target = tmp_path / "t.raw"
    target.write_bytes(b"y" * 3 * MIB)
    receiver = lab.Receiver(f"unix:{tmp_path}/receiver", {"s": target}, in_place=True)
    tap = tapped.Tap(tmp_path, receiver.uri)
    blkmig.send([tmp_path / "s.raw"], tap.uri)
    tap.join()
    receiver.result()
    assert len(tap.digests()) <= 3
    assert target.read_bytes() == (tmp_path / "s.raw").read_bytes()
    assert target.stat().st_blocks * 512 <= MIB


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("seed", range(6))
def test_under_a_writer(tmp_path: Path, seed: int, reading: str) -> None:
    """A thread writes all the time; what the target has is the disk as it was at the hold."""
    rng = random.Random(seed)
    new = rng.randbytes(rng.choice((5 * MIB + 1536, 24 * MIB, 12 * MIB + 1000)))
    disk = blkmig.MemoryBackend(bytearray(new), name="d")
    is_over = threading.Event()

    def write() -> None:
        writes = random.Random(seed)
        while not is_over.is_set():
            nbytes = writes.choice((1, PAGE, 3 * PAGE))
            try:
                disk.pwrite(writes.randbytes(nbytes), writes.randrange(disk.size - nbytes))
            except blkmig.errors.DeviceError:
                return  # refused: the disk has moved
            is_over.wait(0.0005)

    writer = threading.Thread(target=write)
    for target, options in modes(tmp_path, old_of(rng, new, len(new))):
        writer = threading.Thread(target=write)
        writer.start()
        try:
            lab.migrate(
                tmp_path, "unix", [disk], {"d": target}, receive=options, reading=reading, writers_after="refuse"
            )
        finally:
            is_over.set()
            writer.join()
        assert target.read_bytes() == disk.pread(0, disk.size)
        disk = blkmig.MemoryBackend(bytearray(new), name="d")
        is_over.clear()


@pytest.mark.parametrize("parameters", [{"delta": False}, {"format": "block"}, {"return_path": False}])
def test_when_nothing_is_compared(tmp_path: Path, parameters: Mapping[str, Any]) -> None:
    (tmp_path / "t.raw").write_bytes(b"x" * 3 * MIB)
    disk = blkmig.MemoryBackend(bytearray(b"x" * 3 * MIB), name="d")
    sent, came = lab.migrate(
        tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, receive={"in_place": True}, **parameters
    )
    assert sent.same_bytes == came.disks["d"].same_bytes == 0
    assert any("did not compare" in note for note in came.notes)
    assert (tmp_path / "t.raw").read_bytes() == b"x" * 3 * MIB


def test_with_digests(tmp_path: Path) -> None:
    """What was the same is read back and verified, too."""
    new, old = random.Random(5).randbytes(7 * MIB + 512), bytearray(random.Random(5).randbytes(7 * MIB + 512))
    old[3 * MIB : 3 * MIB + PAGE] = bytes(PAGE)
    (tmp_path / "t.raw").write_bytes(old)
    receive = {"in_place": True, "verify": True}
    disk = blkmig.MemoryBackend(bytearray(new), name="d")
    sent, came = lab.migrate(tmp_path, "tcp", [disk], {"d": tmp_path / "t.raw"}, receive=receive, digests=True)
    assert came.disks["d"].verified
    assert sent.same_bytes > 6 * MIB


@pytest.mark.parametrize("seed", range(3))
def test_with_proof_under_a_writer(tmp_path: Path, seed: int) -> None:
    """What was the same is read back and proven beside the stream, as what was sent."""
    rng = random.Random(seed)
    new = rng.randbytes(9 * MIB + 1000)
    (tmp_path / "s.raw").write_bytes(new)
    (tmp_path / "t.raw").write_bytes(old_of(rng, new, len(new)))
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:

        def drive(migration: blkmig.OutgoingMigration) -> None:
            for _ in range(3):
                migration.iterate()
                disk.pwrite(rng.randbytes(PAGE), rng.randrange(disk.size - PAGE))
            migration.run()

        sent, came = lab.migrate(
            tmp_path,
            "unix",
            [disk],
            {"d": tmp_path / "t.raw"},
            drive=drive,
            receive={"in_place": True, "verify": True},
            digests=True,
        )
    assert sent.verified
    assert came.disks["d"].verified
    assert sent.same_bytes
    assert (tmp_path / "t.raw").read_bytes() == (tmp_path / "s.raw").read_bytes()


def test_who_asks_an_older_target_for_a_link_that_comes_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is opened at the target, and with what to say instead; who does not ask has no session there."""
    monkeypatch.setattr(comparing, "abilities", lambda *_: savevm.OURS & ~savevm.Ability.RECOMPARE)
    target = tmp_path / "t.raw"
    target.write_bytes(bytes(MIB))
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    for chosen in ({"reconnect": 60}, {"reconnect": 60, "delta": False}, {"reconnect": 0}, {}):
        receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, in_place=True)
        if chosen == {"reconnect": 60}:
            with pytest.raises(errors.ParameterError, match="send without --reconnect, or everything with --no-delta"):
                blkmig.send([disk], receiver.uri, **chosen)
            with pytest.raises(errors.MigrationError):
                receiver.result()
            assert target.read_bytes() == bytes(MIB)
        else:
            blkmig.send([disk], receiver.uri, **chosen)
            receiver.result()
            assert target.read_bytes() == b"x" * MIB


def test_a_link_that_is_lost_is_the_end_without_a_session(tmp_path: Path) -> None:
    """And what to do next is said."""
    target = tmp_path / "t.raw"
    target.write_bytes(bytes(16 * MIB))
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, in_place=True)
    disk = blkmig.MemoryBackend(bytearray(random.Random(1).randbytes(16 * MIB)), name="d")
    with cutter.Cutter(receiver.uri, [(4 * MIB, "reset")]) as relay:
        migration = blkmig.outgoing([disk], relay.uri, blkmig.MigrationParameters(reconnect=0))
        with pytest.raises(errors.ChannelError) as caught, migration:
            migration.run()
        with pytest.raises(errors.MigrationError):
            receiver.result()
        assert relay.connections == 1
    assert migration.stats.reconnects == migration.stats.barriers == 0
    assert any("start the receiver again" in note for note in caught.value.__notes__)
