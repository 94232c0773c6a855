# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are proven beside the stream: equal ones are called verified at both ends, others are found and named."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import pytest
from disks import mounted

import blkmig
from blkmig import errors, savevm
from blkmig.block import proof, proofs, prooftable, proving
from blkmig.files import direct, storage
from blkmig.migration import readback

MIB = lab.MIB
SIZE = 6 * MIB + 1536


def failing(tmp_path: Path, disk: blkmig.BlockBackend, target: Any, **parameters: Any) -> errors.ContentMismatch:
    """Migrate a disk whose target differs; return what both ends say alike."""
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target}, verify=True)
    with pytest.raises(errors.ContentMismatch) as sent:
        blkmig.send([disk], receiver.uri, digests=True, **parameters)
    with pytest.raises(errors.ContentMismatch) as came:
        receiver.result()
    assert sent.value.exit_code == came.value.exit_code == 3
    assert (sent.value.device, sent.value.offset) == (came.value.device, came.value.offset)
    assert receiver.migration.stats.status == "failed"
    assert not receiver.migration.stats.disks["d"].verified
    return came.value


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("seed", range(4))
def test_equal_disks_are_verified_at_both_ends(tmp_path: Path, seed: int, reading: str, writers_after: str) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice(lab.SIZES) for _ in range(3)]
    disks: list[blkmig.BlockBackend] = []
    for number, size in enumerate(sizes):
        content = lab.random_disk(rng, size)
        if number:
            disks.append(blkmig.FileBackend(lab.sparse_file(tmp_path / f"s{number}", content), name=f"d{number}"))
        else:
            disks.append(blkmig.MemoryBackend(bytearray(content), name="d0"))
    disks.append(blkmig.MemoryBackend(bytearray(), name="empty"))

    def drive(migration: blkmig.OutgoingMigration) -> None:
        for _ in range(3):
            migration.iterate()
            for _ in range(rng.randrange(30)):
                disk: Any = rng.choice(disks[:-1])
                data = rng.choice((bytes, rng.randbytes))(min(disk.size, rng.choice((1, 4096, 70_000, MIB))))
                disk.pwrite(data, rng.randrange(disk.size - len(data) + 1))
        migration.run()

    into = tmp_path / "into"
    sent, came = lab.migrate(
        tmp_path, "tcp", disks, {}, drive=drive, receive={"verify": True, "into": into},
        digests=True, reading=reading, writers_after=writers_after,
    )  # fmt: skip
    assert sent.verified
    assert [disk.verified for disk in came.disks.values()] == [True] * 4
    for disk in disks[:-1]:
        held: Any = disk
        assert (into / f"{disk.name}.raw").read_bytes() == held.pread(0, disk.size)
    for disk in disks:
        disk.close()


def test_a_target_that_is_no_file_is_compared_after_the_word(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(lab.random_disk(random.Random(1), SIZE)), name="d")
    target = blkmig.MemoryBackend(bytearray(SIZE), name="d")
    sent, came = lab.migrate(tmp_path, "unix", [disk], {"d": target}, receive={"verify": True}, digests=True)
    assert sent.verified
    assert came.disks["d"].verified
    assert any("not read from storage" in note for note in came.notes)


def test_without_the_library_digests_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    disk = blkmig.MemoryBackend(bytearray(b"x" * SIZE), name="d")
    sent, came = lab.migrate(
        tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, receive={"verify": True}, digests=True
    )
    assert not sent.verified
    assert came.disks["d"].verified


def test_only_a_receiver_that_verifies_is_proven_anything(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * SIZE), name="d")
    sent, came = lab.migrate(tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, digests=True)
    assert not sent.verified
    assert not came.disks["d"].verified


def rotting(monkeypatch: pytest.MonkeyPatch, block: int, rot: Callable[[], None], form: str = "blocks") -> None:
    """Have `rot` called once, when a block of a target is stored, on stable storage, and about to be read back."""
    compare, calls = proving.difference, []

    def rotten(reader: Any, shape: Any, said: Any, number: int) -> Any:
        if number == block and said.form == form and not calls:
            calls.append(number)
            rot()
        return compare(reader, shape, said, number)

    monkeypatch.setattr(proving, "difference", rotten)


def flip(path: Path, offset: int) -> None:
    """Flip a bit of a file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("offset", [0, MIB - 1, 3 * MIB + 12_345, SIZE - 1])
def test_a_byte_that_rots_at_the_target_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    (tmp_path / "t.raw").write_bytes(bytes(SIZE))
    form = "blocks" if offset < 5 * MIB else "pieces"  # the last two blocks overlap
    rotting(monkeypatch, offset // MIB, lambda: flip(tmp_path / "t.raw", offset), form)
    disk = blkmig.MemoryBackend(bytearray(random.Random(2).randbytes(SIZE)), name="d")
    error = failing(tmp_path, disk, tmp_path / "t.raw")
    assert error.offset is not None
    assert error.offset <= offset < error.offset + 2 * MIB
    assert "'d'" in str(error)
    assert any("told before" in note for note in error.__notes__)


class Late(blkmig.MemoryBackend):
    """A disk that is written once more just before its writers are held, when all of it was read a second time."""

    def hold_writers(self) -> None:
        self.pwrite(b"w" * 4096, 2 * MIB + 8192)
        super().hold_writers()


def test_of_a_block_that_was_written_the_piece_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block is proven piece by piece; the byte that rots is in a piece that nobody has written."""
    (tmp_path / "t.raw").write_bytes(bytes(SIZE))
    rotting(monkeypatch, 2, lambda: flip(tmp_path / "t.raw", 2 * MIB + 40_000), "pieces")
    error = failing(tmp_path, Late(bytearray(random.Random(2).randbytes(SIZE)), name="d"), tmp_path / "t.raw")
    assert error.offset == 2 * MIB + 36_864
    assert "between the offsets 2134016 and 2138112" in str(error)


def test_a_byte_that_changes_between_send_and_second_read_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has marked it, so nobody has written it: the source's storage has another byte than was sent."""
    contents = bytearray(random.Random(2).randbytes(SIZE))
    disk = blkmig.MemoryBackend(contents, name="d")
    again = proof.DiskProof.read_again

    def rotten(self: Any, reader: Any, block: int, count: int) -> int:
        if block == 3:
            contents[3 * MIB + 77] ^= 4
        return again(self, reader, block, count)

    monkeypatch.setattr(proof.DiskProof, "read_again", rotten)
    assert failing(tmp_path, disk, tmp_path / "t.raw").offset == 3 * MIB


@pytest.fixture
def file_system(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a file system's folder, and the file below it that holds it."""
    image, folder = tmp_path / "image", tmp_path / "mounted"
    with mounted(image, folder, 64 * MIB):
        yield folder, image


def flip_below(image: Path, marker: bytes) -> None:
    """Change the byte behind `marker`, which is in the image once, below the file system that is mounted."""
    at = image.read_bytes().find(marker)
    assert at >= 0
    with image.open("r+b", buffering=0) as file:
        file.seek(at + len(marker))
        file.write(b"\xff")


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_byte_that_changes_below_the_file_system_is_named(
    tmp_path: Path, file_system: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """The page cache still has the old byte: only who reads the storage can know."""
    folder, image = file_system
    marker = random.Random(9).randbytes(64)
    content = bytearray(random.Random(2).randbytes(SIZE))
    content[4 * MIB + 4096 : 4 * MIB + 4096 + 65] = marker + b"\x01"
    is_source = side == "source"
    source = (folder if is_source else tmp_path) / "s.raw"
    target = (tmp_path if is_source else folder) / "t.raw"
    source.write_bytes(content)
    if is_source:
        with source.open("rb") as file:
            os.fsync(file.fileno())
        flip_below(image, marker)
    else:
        rotting(monkeypatch, 4, lambda: flip_below(image, marker))
    with blkmig.FileBackend(source, name="d") as disk:
        assert disk.pread(4 * MIB + 4096, 65) == marker + b"\x01", "the page cache does not know"
        error = failing(tmp_path, disk, target)
    assert error.offset == 4 * MIB


def test_a_second_read_that_fails_ends_the_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: storage.FileReader, offset: int, nbytes: int) -> memoryview:
        raise errors.DeviceError("cannot read back", device="d", cause=OSError(5, "broken"), offset=offset)

    (tmp_path / "s.raw").write_bytes(b"x" * SIZE)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": blkmig.MemoryBackend(bytearray(SIZE), name="d")}, verify=True)
    monkeypatch.setattr(storage.FileReader, "read", broken)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk, pytest.raises(errors.DeviceError, match="read back"):
        blkmig.send([disk], receiver.uri, digests=True)
    with pytest.raises(errors.MigrationError):
        receiver.result()


def test_a_target_that_cannot_be_read_back_says_so_at_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreadable(blkmig.MemoryBackend):
        def read_block(self, blk: Any, offset: int, nbytes: int) -> bool:
            raise errors.DeviceError("cannot read", device="d", cause=OSError(5, "broken"), offset=offset)

    disk = blkmig.MemoryBackend(bytearray(b"x" * SIZE), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": Unreadable(bytearray(SIZE), name="d")}, verify=True)
    with pytest.raises(errors.NotVerified, match=r"is complete.*cannot tell whether.*cannot read at offset"):
        blkmig.send([disk], receiver.uri, digests=True)
    with pytest.raises(errors.NotVerified, match="complete here, but it is not verified: disk 'd': cannot read"):
        receiver.result()


@pytest.mark.parametrize("is_dropped", [True, False])
def test_where_nothing_goes_past_the_page_cache_it_is_dropped_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_dropped: bool
) -> None:
    def no_direct(fd: int, *, writable: bool) -> int:
        raise OSError(22, "no direct I/O here")

    monkeypatch.setattr(direct, "open_again", no_direct)
    monkeypatch.setattr(storage, "is_resident", lambda *_: not is_dropped)
    (tmp_path / "s.raw").write_bytes(random.Random(2).randbytes(SIZE))
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        sent, came = lab.migrate(
            tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, receive={"verify": True}, digests=True
        )
    assert came.disks["d"].verified
    assert any("from memory only" in note for note in sent.notes)
    assert any("not read from storage" in note for note in came.notes) != is_dropped


def test_what_does_not_fit_into_memory_is_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prooftable, "MAX_BYTES", 1000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    disk = blkmig.MemoryBackend(bytearray(random.Random(2).randbytes(SIZE)), name="d")
    target = blkmig.MemoryBackend(bytearray(SIZE), name="d")

    def drive(migration: blkmig.OutgoingMigration) -> None:
        for number in range(100):
            disk.pwrite(b"w", number * 60_000)
            migration.iterate()
        migration.run()

    sent, _ = lab.migrate(tmp_path, "unix", [disk], {"d": target}, drive=drive, receive={"verify": True}, digests=True)
    assert sent.verified
    assert not [path for path in tmp_path.iterdir() if "proof" in path.name]


def test_a_pause_that_is_given_up_costs_no_proof(tmp_path: Path) -> None:
    """What was sent in it is proven as any round's."""

    class Stubborn(blkmig.MemoryBackend):
        tries = 0

        def hold_writers(self) -> None:
            super().hold_writers()
            self.tries += 1
            if self.tries == 1:
                assert waited(lambda: not self.is_held), "the pause is not given up"

    disk = Stubborn(bytearray(random.Random(2).randbytes(SIZE)), name="d")
    sent, came = lab.migrate(
        tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"}, receive={"verify": True}, digests=True, downtime_limit=0.01
    )
    assert sent.pauses_given_up == 1
    assert sent.verified
    assert came.disks["d"].verified


def test_a_source_that_goes_away_before_its_last_proofs_leaves_a_whole_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target has said that the disk is its own; it is not verified, and says so."""

    def gone(self: proofs.Proofs) -> Iterator[bytes]:
        raise errors.Cancelled("gone")

    monkeypatch.setattr(proofs.Proofs, "last_records", gone)
    content = random.Random(2).randbytes(SIZE)
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"}, verify=True)
    with pytest.raises(errors.NotVerified, match="not verified") as sent:
        blkmig.send([disk], receiver.uri, digests=True)
    assert isinstance(sent.value.__cause__, errors.Cancelled)
    with pytest.raises(errors.NotVerified, match="it is not verified"):
        receiver.result()
    assert (tmp_path / "t.raw").read_bytes() == content


def test_a_link_that_was_lost_behind_the_word_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the last proofs is told how the link was lost, not that a file of ours is closed by now."""
    load, loss = savevm.LoadVM.loadvm, errors.ChannelError("receiving", uri="tcp:there", cause="the cable is out")

    def lose(self: savevm.LoadVM) -> savevm.LoadedStream:
        load(self)
        raise loss

    monkeypatch.setattr(savevm.LoadVM, "loadvm", lose)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"}, verify=True)
    with pytest.raises(errors.NotVerified, match="not verified"):
        blkmig.send([blkmig.MemoryBackend(bytearray(SIZE), name="d")], receiver.uri, digests=True)
    with pytest.raises(errors.NotVerified, match=r"waited for .*the cable is out"):
        receiver.result()


def test_a_cancel_is_heard_while_the_target_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause waits for the comparison, and whoever cancels does not."""
    is_cancelled, compare = threading.Event(), proving.difference

    def waiting(*args: Any) -> Any:
        migration.cancel()
        is_cancelled.set()
        return compare(*args)

    monkeypatch.setattr(proving, "difference", waiting)
    disk = blkmig.MemoryBackend(bytearray(random.Random(2).randbytes(SIZE)), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"}, verify=True)
    migration = blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(digests=True))
    with pytest.raises(errors.Cancelled), migration:
        migration.run()
    assert is_cancelled.is_set()
    assert not disk.is_held
    with pytest.raises(errors.MigrationError):
        receiver.result()


def waited(question: Callable[[], bool]) -> bool:
    """Ask until it is so; the bound of a pause is a second at least."""
    never = threading.Event()
    return any(question() or never.wait(0.01) for _ in range(3000))


@pytest.mark.parametrize("how", ["cancel", "timeout"])
@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_proof_that_is_cut_short_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers_after: str, how: str
) -> None:
    """Behind DONE no error may sound as if the source were the owner, whoever ends the wait for the proof."""
    finish = readback.ReadBack.finish
    disk = blkmig.MemoryBackend(bytearray(b"d" * SIZE), name="d")
    over = threading.Event()

    def end_first(self: readback.ReadBack, *args: Any) -> None:
        if how == "cancel":
            migration.cancel()
        over.wait(30)  # the source has given up
        finish(self, *args)

    monkeypatch.setattr(readback.ReadBack, "finish", end_first)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"}, verify=True)
    timeout = {"timeout": 1.0} if how == "timeout" else {}
    migration = blkmig.outgoing(
        [disk],
        receiver.uri,
        blkmig.MigrationParameters(digests=True, writers_after=writers_after, idle_timeout=20, **timeout),
    )
    with pytest.raises(errors.NotVerified, match="complete") as caught, migration:
        migration.run()
    over.set()
    receiver.join()
    assert caught.value.exit_code == 3
    assert migration.stats.status == "failed"
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, SIZE)
    with contextlib.nullcontext() if writers_after == "release" else pytest.raises(errors.DeviceError, match="moved"):
        disk.pwrite(b"written afterwards", 0)
