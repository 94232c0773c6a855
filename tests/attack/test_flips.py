# SPDX-License-Identifier: GPL-2.0-or-later
"""One byte flips while disks are proven: whoever ends with "verified" holds what the source held in the pause.

Half of the bytes flip below a page cache that does not know, in the file behind a loop device. The oracle compares what
the two sides hold at the end, byte by byte. If they differ, both ends end with exit code 3 and name the disk and the
place; if the byte was overwritten in time, both ends are verified.

What flips in a target after it was compared, and is not written any more, is beyond any proof. So each byte flips
before its block is compared, or before the source writes that block once more. With ``--long`` it is 200 of them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import mmap
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disks
import lab
import nbd_servers
import pytest

import blkmig
from blkmig import errors
from blkmig.block import proof, proofwords, proving
from blkmig.disk import LocalBackend, geometry, storage

MIB = lab.MIB
PAGE = 4096
SIZE = 6 * MIB + 1536

MOMENTS = ("its proof comes", "it is compared", "between rounds", "before the hold", "in the pause")
BELOW = [
    *(("target", kind, moment) for moment in MOMENTS for kind in ("mounted", "device")),
    *(("source", kind, moment) for moment in ("it is sent", "it is read again") for kind in ("mounted", "device")),
]
ABOVE = [
    *(("target", kind, moment) for moment in MOMENTS for kind in ("plain", "mounted", "device", "nbd")),
    *(("source", "plain", moment) for moment in ("it is sent", "it is read again")),
]
SHORT, LONG = 2 * max(len(BELOW), len(ABOVE)), 200


@dataclasses.dataclass
class Store:
    """A place for disks: `show` has what its users see, `below` holds it below their page cache, None if nothing does.

    Where `show` is a folder, each disk is a file in it; otherwise it is a device, for one disk.
    """

    show: Path
    below: Path | None = None

    def path(self, name: str) -> Path:
        return self.show / name if self.show.is_dir() else self.show


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Store]]:
    """Yield a plain folder, the same for files behind an NBD server, a file system on a loop device, and the device."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "plain").mkdir()
    with (folder / "device").open("wb") as file:
        file.truncate(SIZE)
    with (
        disks.mounted(folder / "image", folder / "mounted", 64 * MIB),
        disks.loop_device(folder / "device") as device,
    ):
        yield {
            "plain": Store(folder / "plain"),
            "nbd": Store(folder / "plain"),
            "mounted": Store(folder / "mounted", folder / "image"),
            "device": Store(Path(device), folder / "device"),
        }


@dataclasses.dataclass
class Flip:
    """A byte of a disk that flips once, in the file that a store shows, or below it."""

    store: Store
    name: str
    offset: int
    is_below: bool
    done: bool = False

    def __call__(self) -> None:
        """Flip it, the first time that it is there."""
        if self.done:
            return
        path, at = self.store.path(self.name), self.offset
        if not path.exists():  # a new target has a hidden name until the end
            path = path.with_name(f".{path.name}.blkmig-partial")
        if self.is_below:
            path, at = self._place_below(path)
        if at < 0:
            return  # its block has come, but waits to be stored
        self.done = True
        with path.open("r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1]), at)

    def _place_below(self, path: Path) -> tuple[Path, int]:
        assert self.store.below is not None
        with path.open("rb") as file, self.store.below.open("rb") as below:
            os.fsync(file.fileno())
            if not self.store.show.is_dir():
                return self.store.below, self.offset
            start = self.offset // PAGE * PAGE
            page = os.pread(file.fileno(), min(PAGE, 512), start)
            with mmap.mmap(below.fileno(), 0, access=mmap.ACCESS_READ) as image:
                place = image.find(page)
                assert place < 0 or image.find(page, place + 1) < 0, "the page is in the image twice"
        return self.store.below, place + self.offset - start if place >= 0 else -1


class Held(LocalBackend):
    """A disk that calls `before` and `after` around the hold of its writers, and keeps in `held` what it holds then."""

    before: Callable[[], None]
    after: Callable[[], None]
    held = b""

    def hold_writers(self) -> None:
        self.before()
        super().hold_writers()
        self.held = self.pread(0, self.size)
        self.after()


class HeldFile(Held, blkmig.FileBackend):
    """A file or a device."""


class Misread(Held, blkmig.MemoryBackend):
    """Memory of which the byte at `wrong` is read wrongly when its block is read for the first time."""

    def __init__(self, contents: bytearray, *, name: str, wrong: int) -> None:
        super().__init__(contents, name=name)
        self.contents, self.wrong = contents, wrong

    def read_block(self, blk: Any, offset: int, nbytes: int) -> bool:
        is_zero = super().read_block(blk, offset, nbytes)
        if offset <= self.wrong < offset + nbytes:
            blk.data[self.wrong - offset] ^= 1
            self.wrong = -1
        return is_zero

    def open_reader(self, *, is_target: bool) -> storage.StorageReader:
        return storage.BackendReader(blkmig.MemoryBackend(self.contents, name=self.name))


class Run:
    """One migration of two disks, and one byte that flips; all of it is drawn from `seed`."""

    def __init__(self, seed: int, folder: Path, stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
        kinds = BELOW if seed % 2 else ABOVE
        self.side, kind, self.moment = kinds[seed // 2 % len(kinds)]
        self.rng = rng = random.Random(seed)
        self.text = f"seed {seed}: {self.side} on {kind}, {'below' if seed % 2 else 'above'}, when {self.moment}"
        self.offset = rng.choice((0, SIZE - 1, rng.randrange(SIZE), rng.randrange(SIZE)))
        self.block = self.offset // MIB  # the last one begins early, and what is in it alone lies behind whole MiBs
        content = bytearray(lab.random_disk(rng, SIZE))
        self.start, _ = geometry.BlockGeometry(SIZE).block_range(self.block)
        content[self.start : self.start + MIB] = rng.randbytes(MIB)

        is_source = self.side == "source"
        plain, store = stores["plain"], stores[kind]
        name = rng.choice("ab")
        source = (store if is_source else plain).path(f"{seed}.source")
        target = (plain if is_source else store).path(f"{seed}.target")
        self.flip = Flip(store, (source if is_source else target).name, self.offset, bool(seed % 2))
        self.disk = self._open(source, content, name, is_memory=self.moment == "it is sent" and not seed % 2)
        other = blkmig.MemoryBackend(bytearray(lab.random_disk(rng, 3 * MIB)), name="ab".replace(name, ""))
        self.disks: list[LocalBackend] = sorted([self.disk, other], key=lambda disk: disk.name)
        self.targets: dict[str, Any] = {name: target, other.name: folder / f"{seed}.other"}
        self.stack = contextlib.ExitStack()
        if (kind == "nbd" or rng.random() < 0.5) and not target.exists():
            target.write_bytes(rng.randbytes(SIZE))
        if kind == "nbd":
            self.targets[name] = self.stack.enter_context(nbd_servers.nbdkit("file", target)).uri
        self.target = target
        self._hook(monkeypatch)

    def _open(self, path: Path, content: bytearray, name: str, *, is_memory: bool) -> Any:
        disk: Any
        if is_memory:
            disk = Misread(content, name=name, wrong=self.offset)
        else:
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            disk = HeldFile(path, name=name)
            if self.moment == "it is sent":
                disk.pread(0, SIZE)  # what is sent is what memory has
                self.flip()
        disk.before = self._before_hold
        disk.after = lambda: self.flip() if self.moment == "in the pause" else None
        return disk

    def _hook(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the byte flip when its time has come, in the threads of both ends."""
        take, compare, again = proving.Proving.take_proof, proving.difference, proof.DiskProof.read_again
        index, shapes = self.disks.index(self.disk), [geometry.BlockGeometry(disk.size) for disk in self.disks]

        def is_it(said: Any, first: int, count: int) -> bool:
            return said == index and first <= self.block < first + count

        def taken(this: Any, body: bytes, position: int) -> None:
            said = proofwords.decode(body, shapes, position)
            if self.moment == "its proof comes" and is_it(said.disk, said.block, said.count):
                self.flip()
            take(this, body, position)

        def compared(reader: Any, shape: Any, said: Any, block: int) -> Any:
            is_late = said.form == "pieces" or self.moment in ("its proof comes", "it is compared")
            if self.side == "target" and is_late and is_it(said.disk, block, 1):
                self.flip()  # at the latest
            return compare(reader, shape, said, block)

        def read_again(this: Any, reader: Any, block: int, count: int) -> int:
            if self.moment == "it is read again" and is_it(this.index, block, count):
                self.flip()
            return again(this, reader, block, count)

        monkeypatch.setattr(proving.Proving, "take_proof", taken)
        monkeypatch.setattr(proving, "difference", compared)
        monkeypatch.setattr(proof.DiskProof, "read_again", read_again)

    def _write_beside(self) -> None:
        """Write another page of the block that the byte is in."""
        pages = set(range(-(-self.start // PAGE) * PAGE, self.start + MIB, PAGE)) - {self.offset // PAGE * PAGE}
        self.disk.pwrite(self.rng.randbytes(512), self.rng.choice(sorted(pages)))

    def _write_anywhere(self) -> None:
        """Write, but not what a source shall find flipped below its page cache."""
        disk = self.rng.choice(self.disks)
        data = self.rng.randbytes(self.rng.choice((512, PAGE, 70_000)))
        offset = self.rng.randrange(disk.size - len(data))
        if self.side == "target" or disk is not self.disk or abs(offset - self.offset) > 2 * MIB:
            disk.pwrite(data, offset)

    def _before_hold(self) -> None:
        if self.moment == "before the hold":
            self.flip()
        if self.moment in ("before the hold", "in the pause"):
            self._write_beside()

    def _drive(self, migration: blkmig.OutgoingMigration) -> None:
        for _ in range(self.rng.randrange(1, 4)):
            migration.iterate()
            self._write_anywhere()
        if self.moment == "between rounds":
            self.flip()
            self._write_beside()
            migration.iterate()
        migration.run()

    def outcome(self, folder: Path) -> str:
        """Run it; return whether the byte was found, or overwritten in time."""
        receiver = lab.Receiver(self.rng.choice((f"unix:{folder}/s", "tcp:127.0.0.1:0")), self.targets, verify=True)
        migration = blkmig.outgoing(
            self.disks,
            receiver.uri,
            blkmig.MigrationParameters(
                digests=True,
                granularity=self.rng.choice((PAGE, PAGE, 65536, MIB)),
                reading=self.rng.choice(("inline", "parallel")),
                writers_after=self.rng.choice(("release", "refuse")),
                compress=self.rng.choice(("auto", "zstd")),
            ),
        )
        raised: list[errors.MigrationError] = []
        with self.stack:
            for disk in self.disks:
                self.stack.enter_context(disk)
            for end in (lambda: self._send(migration), receiver.result):
                try:
                    end()
                except errors.MigrationError as error:
                    raised.append(error)
        return self._judge(raised, migration.stats.verified)

    def _send(self, migration: blkmig.OutgoingMigration) -> None:
        with migration:
            self._drive(migration)

    def _judge(self, raised: list[errors.MigrationError], verified: bool) -> str:
        assert self.flip.done or isinstance(self.disk, Misread), self.text
        expected = bytearray(self.disk.held)
        if self.side == "source" and self.flip.is_below:
            expected[self.offset] ^= 1  # what its storage holds
        found = from_storage(self.target)
        differing = [at for at in range(SIZE) if found[at] != expected[at]] if found != expected else []
        assert differing in ([], [self.offset]), f"{self.text}: {len(differing)} bytes differ"
        if not differing:
            assert not raised, f"{self.text}: a false alarm: {raised}"
            assert verified, self.text
            return "overwritten"
        assert [type(error) for error in raised] == [errors.ContentMismatch] * 2, f"{self.text}: not found: {raised}"
        for error in raised:
            where = re.search(r"between the offsets (\d+) and (\d+)", str(error))
            assert where, error
            assert error.exit_code == 3, self.text
            assert error.device == self.disk.name, self.text
            assert int(where[1]) <= self.offset < int(where[2]) <= int(where[1]) + MIB, f"{self.text}: {error}"
        return "found"


def from_storage(path: Path) -> bytes:
    """Return what a file or a device holds below the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        os.fsync(fd)
        with mmap.mmap(-1, -(-SIZE // PAGE) * PAGE) as memory:
            assert os.readv(fd, [memory]) == SIZE
            return memory[:SIZE]
    finally:
        os.close(fd)


def test_each_byte_that_differs_is_found(
    tmp_path: Path, stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    for seed in range(LONG if is_long else SHORT):
        with monkeypatch.context() as hooks:
            run = Run(seed, tmp_path, stores, hooks)
            found = run.outcome(tmp_path)
        outcomes[found] += 1
        for name in (f"{seed}.source", f"{seed}.target"):
            for store in stores.values():
                if store.show.is_dir():
                    (store.show / name).unlink(missing_ok=True)
    assert outcomes["found"] >= sum(outcomes.values()) // 2, outcomes
