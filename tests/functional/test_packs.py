# SPDX-License-Identifier: GPL-2.0-or-later
"""Live disks whose writers touch little of each block: what travels is what they wrote, and both ends are equal."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import block, errors
from blkmig import disk as disk_room

MIB = lab.MIB
PAGE = 4096


def write_pages(disk: disk_room.LocalBackend, rng: random.Random, count: int) -> None:
    """Write pages anywhere in a disk, now and then only a byte or a few."""
    for _ in range(count):
        nbytes = min(disk.size, rng.choice((PAGE, PAGE, 1, 3 * PAGE)))
        offset = rng.randrange(disk.size - nbytes + 1)
        disk.pwrite(rng.randbytes(nbytes), offset // PAGE * PAGE if nbytes == PAGE else offset)


def rounds_of(rng: random.Random, disks: list[disk_room.LocalBackend], pages: int) -> lab.Drive:
    """Return what drives a migration: bulk, some rounds with writes between them, and the end."""

    def drive(migration: blkmig.OutgoingMigration) -> None:
        for _ in range(3):
            migration.iterate()
            for disk in disks:
                write_pages(disk, rng, pages)
        migration.complete()

    return drive


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe", "file"])
@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("seed", range(3))
def test_both_ends_are_equal(tmp_path: Path, kind: str, reading: str, seed: int) -> None:
    rng = random.Random(seed)
    disks: list[disk_room.LocalBackend] = []
    for number in range(rng.choice((1, 3))):
        content = lab.random_disk(rng, rng.choice(lab.SIZES))
        if rng.random() < 0.5:
            disks.append(blkmig.MemoryBackend(bytearray(content), name=f"d{number}"))
        else:
            path = lab.sparse_file(tmp_path / f"s{number}.raw", content)
            disks.append(blkmig.FileBackend(path, name=f"d{number}"))
    targets = {disk.name: tmp_path / f"t{disk.name}.raw" for disk in disks}
    sent, came = lab.migrate(
        tmp_path,
        kind,
        [*disks],
        targets,
        drive=rounds_of(rng, disks, 20),
        format="blkmig",
        reading=reading,
        max_bandwidth=rng.choice((0, 50 * MIB)),
    )
    for disk in disks:
        assert targets[disk.name].read_bytes() == disk.pread(0, disk.size), f"disk {disk.name} of {disk.size}"
        disk.close()
    assert sent.packs == sum(disk.packs for disk in came.disks.values()) > 0
    assert sent.pack_bytes == sum(disk.pack_bytes for disk in came.disks.values())
    assert sent.saved_by_granularity == sum(disk.saved_by_granularity for disk in came.disks.values()) > 0
    assert sent.saved_by_zeros == sum(disk.saved_by_zeros for disk in came.disks.values())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("names", [("d", "e"), ("short", "a-name-that-is-longer")])
def test_among_blocks_that_travel_as_pages(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    """A move on one machine lends the pages of blocks; packs between them are copied, and neither spoils the other."""
    rng = random.Random(12)
    disks: list[disk_room.LocalBackend] = []
    for name in names:
        (tmp_path / f"s-{name}.raw").write_bytes(rng.randbytes(6 * MIB + 1536))
        disks.append(blkmig.FileBackend(tmp_path / f"s-{name}.raw", name=name))

    def drive(migration: blkmig.OutgoingMigration) -> None:
        [handlers] = [
            entry.handlers for entry in migration.savevm if isinstance(entry.handlers, block.BlockSaveHandlers)
        ]
        blk = handlers.blk_mig.reads.get()
        assert blk.buf.kind == "lent"
        handlers.blk_mig.reads.put(blk)
        for _ in range(4):
            migration.iterate()
            for disk in disks:
                write_pages(disk, rng, 5)
                disk.pwrite(rng.randbytes(MIB), rng.randrange(5) * MIB)
        migration.complete()

    targets = {name: tmp_path / f"t-{name}.raw" for name in names}
    sent, came = lab.migrate(
        tmp_path, kind, [*disks], targets, drive=drive, format="blkmig", writers_after="refuse", reading="inline"
    )
    for disk in disks:
        assert targets[disk.name].read_bytes() == (tmp_path / f"s-{disk.name}.raw").read_bytes()
        assert came.disks[disk.name].packs
        assert came.disks[disk.name].resent_blocks
        disk.close()
    assert sent.packs


class BrokenDisk(blkmig.MemoryBackend):
    """A disk on which a page cannot be read, nor written."""

    bad = 2 * MIB + 8192

    def _fails(self, view: memoryview, offset: int) -> bool:
        return offset <= self.bad < offset + view.nbytes < offset + MIB

    def _pread_into(self, view: memoryview, offset: int) -> None:
        if self._fails(view, offset):
            raise OSError(5, "Input/output error")
        super()._pread_into(view, offset)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        if self._fails(view, offset) and self.name == "t":
            raise OSError(28, "No space left on device")
        super()._pwrite(view, offset)


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("end", ["source", "target"])
def test_a_page_that_cannot_be_read_or_written_is_named(tmp_path: Path, reading: str, end: str) -> None:
    kinds = (BrokenDisk, blkmig.MemoryBackend) if end == "source" else (blkmig.MemoryBackend, BrokenDisk)
    source = kinds[0](bytearray(b"s" * 4 * MIB), name="d")
    target = kinds[1](bytearray(4 * MIB), name="t")
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target})
    parameters = blkmig.MigrationParameters(format="blkmig", reading="inline" if reading == "inline" else "parallel")
    with blkmig.outgoing([source], receiver.uri, parameters) as migration:
        migration.iterate()
        for offset in (PAGE, BrokenDisk.bad, 3 * MIB):
            source.pwrite(b"x" * PAGE, offset)
        with pytest.raises(errors.MigrationError) as caught:
            migration.complete()
    if end == "source":
        assert isinstance(caught.value, errors.DeviceError)
        assert (caught.value.device, caught.value.errno, caught.value.offset) == ("d", 5, BrokenDisk.bad)
        with pytest.raises(errors.MigrationError):
            receiver.result()
    else:
        assert isinstance(caught.value, errors.TargetFailed)
        with pytest.raises(errors.DeviceError) as told:
            receiver.result()
        assert (told.value.device, told.value.errno, told.value.offset) == ("t", 28, BrokenDisk.bad)
        assert "No space left on device" in str(caught.value)


def existing_file(folder: Path, size: int) -> Path:
    (folder / "t.raw").write_bytes(b"\xee" * size)
    return folder / "t.raw"


def direct(folder: Path, size: int) -> blkmig.BlockBackend:
    return blkmig.FileBackend(existing_file(folder, size), name="t", direct=True)


def overlay(folder: Path, size: int) -> blkmig.BlockBackend:
    (folder / "base.raw").write_bytes(b"\xbb" * size)
    (folder / "t.raw").touch()
    (folder / "t.raw").open("r+b").truncate(size)
    return blkmig.FileBackend(folder / "t.raw", name="t", base=folder / "base.raw")


def memory(folder: Path, size: int) -> blkmig.BlockBackend:
    return blkmig.MemoryBackend(bytearray(b"\xee" * size), name="t")


@pytest.mark.parametrize("make", [existing_file, direct, overlay, memory], ids=lambda make: make.__name__)
@pytest.mark.parametrize("size", [3 * MIB, 5 * MIB + 1536, 3 * MIB + 1000])
def test_targets_of_each_kind(tmp_path: Path, make: Callable[[Path, int], object], size: int) -> None:
    rng = random.Random(size)
    source = blkmig.MemoryBackend(bytearray(lab.random_disk(rng, size)), name="d")
    target = make(tmp_path, size)
    sent, _ = lab.migrate(tmp_path, "tcp", [source], {"d": target}, drive=rounds_of(rng, [source], 30), format="blkmig")
    assert sent.packs
    if isinstance(target, disk_room.LocalBackend):
        with target:
            assert target.pread(0, size) == source.pread(0, size)
    else:
        assert (tmp_path / "t.raw").read_bytes() == source.pread(0, size)


def test_only_the_top_layer(tmp_path: Path) -> None:
    """A pack is of a block that was never sent whole: the rest of it is the base's."""
    size, rng = 8 * MIB, random.Random(1)
    base = rng.randbytes(size)
    (tmp_path / "base.raw").write_bytes(base)
    (tmp_path / "top.raw").open("wb").truncate(size)
    with blkmig.FileBackend(tmp_path / "top.raw", name="d", base=tmp_path / "base.raw") as disk:
        disk.pwrite(b"early", 3 * MIB)
        (tmp_path / "t.raw").write_bytes(base)
        sent, _ = lab.migrate(
            tmp_path,
            "unix",
            [disk],
            {"d": tmp_path / "t.raw"},
            drive=rounds_of(rng, [disk], 10),
            receive={"incremental": True},
            format="blkmig",
            shared_base=True,
        )
        assert sent.packs
        assert sent.blocks == 1, "the others never went whole"
        assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, size)


class Writer:
    """A thread that writes pages anywhere in a disk, about a thousand a second, until it is turned away or stopped."""

    def __init__(self, disk: disk_room.LocalBackend) -> None:
        self._disk = disk
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        rng = random.Random(3)
        with contextlib.suppress(errors.DeviceError):  # the disk has moved
            while not self._stop.wait(0.001):
                self._disk.pwrite(rng.randbytes(PAGE), rng.randrange(self._disk.size // PAGE) * PAGE)


@pytest.mark.parametrize("section", ["block", "auto"])
def test_packs_converge_where_blocks_do_not(tmp_path: Path, section: str) -> None:
    """Each round dirties most of 64 blocks: 64 MiB, or some 100 pages; 2 MiB fit the pause."""
    disk = blkmig.MemoryBackend(bytearray(random.Random(4).randbytes(MIB)) * 64, name="d")
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    parameters = blkmig.MigrationParameters(
        format="block" if section == "block" else "auto",
        max_bandwidth=100 * MIB,
        downtime_limit=0.02,
        max_rounds=4,
        writers_after="refuse",
    )
    with Writer(disk), blkmig.outgoing([disk], receiver.uri, parameters) as migration:
        if section == "block":
            with pytest.raises(errors.NotConverged):
                migration.run()
            return
        migration.run()
    assert receiver.result().disks["d"].pack_bytes == migration.stats.pack_bytes > 0
    assert migration.stats.blocks == 64, "every block went whole once, and never again"
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)


def test_packs_stay_packs_where_the_disks_are_proven_beside_the_stream(tmp_path: Path) -> None:
    rng = random.Random(5)
    disk = blkmig.MemoryBackend(bytearray(lab.random_disk(rng, 3 * MIB)), name="d")
    sent, came = lab.migrate(
        tmp_path,
        "tcp",
        [disk],
        {"d": tmp_path / "t.raw"},
        drive=rounds_of(rng, [disk], 3),
        receive={"verify": True},
        digests=True,
        format="blkmig",
    )
    assert sent.packs == came.disks["d"].packs > 0
    assert sent.verified
    assert came.disks["d"].verified
