# SPDX-License-Identifier: GPL-2.0-or-later
"""Several writers in threads while copies of the disk are kept up to date by its dirty bitmaps alone.

Whenever the writers are held, every copy must be equal to the disk after the blocks that are still marked were copied:
not one mark may be lost, whatever attaches and releases trackers meanwhile. A failure prints its seed.
"""

import contextlib
import random
import threading
from collections.abc import Iterator

import disks
import pytest

from blkmig import _core, disk, files

MiB = 1 << 20
SWITCHOVERS = 4
SIZES = [1000, MiB - 512, MiB + 512, 3 * MiB + 1000, 5 * MiB]
CASES = [(kind, size) for kind in disks.KINDS for size in SIZES if kind != "device" or size % 512 == 0]


class Writers:
    """Threads that write until they are told to stop; each uses every way to write."""

    def __init__(self, backend: disk.LocalBackend, seed: int, count: int = 3) -> None:
        self.disk = backend
        self.stopping = threading.Event()
        self.errors: list[BaseException] = []
        self.counts = [0] * count
        self.threads = [threading.Thread(target=self.run, args=(n, random.Random(seed + n))) for n in range(count)]

    def run(self, number: int, rng: random.Random) -> None:
        try:
            while not self.stopping.is_set():
                self.write(rng)
                self.counts[number] += 1
        except BaseException as error:
            self.errors.append(error)

    def write(self, rng: random.Random) -> None:
        size = self.disk.size
        near = rng.choice((0, size - 1, size // MiB * MiB, max(0, size - MiB), rng.randrange(size)))
        offset = min(max(0, near + rng.randrange(-3000, 3000)), size - 1)
        nbytes = min(size - offset, rng.choice((1, 512, 4096, rng.randrange(1, 100_000))))
        match rng.randrange(8):
            case 0:
                self.disk.pwrite_zeroes(offset, nbytes)
            case 1:  # a writer that uses its own way to write, here the one of targets
                blk = _core.BlockBuffer()
                blk.data[:nbytes] = rng.randbytes(nbytes)
                blk.filled(nbytes)
                with self.disk.writing(offset, nbytes):
                    self.disk.write_block(blk, offset, nbytes)
            case _:
                self.disk.pwrite(rng.randbytes(nbytes), offset)

    def __enter__(self) -> "Writers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self.disk.release_writers()
        for thread in self.threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
        assert self.errors == []


class Copy:
    """A copy of a disk that is brought up to date from a dirty bitmap of its own."""

    def __init__(self, backend: disk.LocalBackend, granularity: int) -> None:
        self.source = backend
        self.bitmap = backend.create_dirty_bitmap(granularity)
        self.bitmap.mark_all()
        self.blk = _core.BlockBuffer()
        self.target = files.MemoryBackend(bytearray(backend.size), name="copy")
        self.clear_first = True

    def round(self) -> None:
        block = self.bitmap.next_dirty(0)
        while block >= 0:
            if self.bitmap.granularity < MiB:
                self.copy_extents(block)
            else:
                self.copy_block(block)
            block = self.bitmap.next_dirty(block + 1)

    def copy_extents(self, block: int) -> None:
        """Copy only what a bit stands for; what is more than a list holds stays marked."""
        for offset, nbytes in self.bitmap.take_extents(block, 7):
            self.source.read_block(self.blk, offset, nbytes)
            self.target.write_block(self.blk, offset, nbytes)

    def copy_block(self, block: int) -> None:
        offset, nbytes = self.bitmap.block_range(block)
        if self.clear_first:
            assert self.bitmap.take_block(block)
        self.source.read_block(self.blk, offset, nbytes)
        if not self.clear_first:
            self.bitmap.take_block(block)
        inside = self.bitmap.geometry.clip(offset, nbytes)
        if self.blk.is_zero:
            self.target.write_zeroes(offset, inside)
        else:
            self.target.write_block(self.blk, offset, inside)

    def final_round(self) -> None:
        """Copy what is left while writers are held: nobody marks any more."""
        while self.bitmap.count_blocks():
            self.round()

    def differs(self) -> bool:
        return self.source.pread(0, self.source.size) != self.target.pread(0, self.source.size)


@contextlib.contextmanager
def tracker_churn(backend: disk.LocalBackend) -> Iterator[None]:
    """Attach and release trackers in another thread as fast as possible."""
    stopping = threading.Event()

    def churn() -> None:
        while not stopping.is_set():
            bitmaps = [backend.create_dirty_bitmap(1 << 16) for _ in range(3)]
            for bitmap in bitmaps:
                backend.release_dirty_bitmap(bitmap)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_copies_are_equal_at_every_switchover(kind, size, tmp_path):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    contents, below = disks.patchy(rng, size), disks.patchy(rng, max(1, size - 70_000))
    opened = disks.open_disk(kind, tmp_path, contents, below=below)
    with opened as backend, Writers(backend, seed), tracker_churn(backend):
        copies = [Copy(backend, 1 << 20)]
        for switchover in range(SWITCHOVERS):
            for copy in copies:
                copy.round()
            backend.hold_writers()
            for copy in copies:
                copy.final_round()
                assert not copy.differs(), f"seed {seed}, switchover {switchover}"
                assert copy.bitmap.count_blocks() == 0, f"seed {seed}: marked while writers were held"
            backend.release_writers()
            if switchover == SWITCHOVERS // 2:
                copies.append(Copy(backend, 1 << 12))  # attached while writers run
        for copy in copies:
            backend.release_dirty_bitmap(copy.bitmap)


def test_the_wrong_order_is_caught():
    """The control of the test above: clearing after the read loses writes, and it notices."""
    seed = random.randrange(1 << 32)
    backend = files.MemoryBackend(bytearray(MiB), name="m")
    copy = Copy(backend, MiB)
    copy.clear_first = False
    rng = random.Random(seed)
    read_block = backend.read_block

    def read_then_write(blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        is_zero = read_block(blk, offset, nbytes)
        backend.pwrite(rng.randbytes(100), 1000)  # a guest, in the worst moment
        return is_zero

    backend.read_block = read_then_write
    copy.round()
    backend.hold_writers()
    backend.read_block = read_block
    copy.final_round()
    assert copy.differs(), f"seed {seed}"


def test_writers_make_progress_between_holds():
    backend = files.MemoryBackend(bytearray(4 * MiB), name="m")
    with Writers(backend, seed=1) as writers:
        for _ in range(20):
            backend.hold_writers()
            held = list(writers.counts)
            backend.release_writers()
            while all(now == before for now, before in zip(writers.counts, held, strict=True)):
                assert not writers.errors


def test_refused_writers_end_and_the_copy_is_final():
    backend = files.MemoryBackend(bytearray(4 * MiB), name="m")
    writers = Writers(backend, seed=2)
    for thread in writers.threads:
        thread.start()
    copy = Copy(backend, MiB)
    copy.round()
    backend.hold_writers()
    copy.final_round()
    backend.release_writers(refuse=True)
    for thread in writers.threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert {str(error) for error in writers.errors} == {"disk 'm': cannot be written: the disk has moved"}
    assert not copy.differs()
