# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks that are stored behind the back of whoever receives: in order, all of them, or an error says which are not."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import random
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import descriptors
import pytest
from fd_pairs import open_pair
from page_streams import Sender, each_block, receiver

from blkmig import _core, _storing, errors, files
from blkmig.files import storing

MiB = _core.BLOCK_SIZE
CLUSTER = 1 << 16
NBLOCKS = 6


@pytest.fixture
def content() -> bytes:
    """Noise, and a block whose clusters are zero but for the last."""
    data = bytearray(random.Random(7).randbytes(NBLOCKS * MiB))
    data[2 * MiB : 3 * MiB - CLUSTER] = bytes(MiB - CLUSTER)
    return bytes(data)


@pytest.fixture
def source(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def arriving(source: Path, blocks: list[int], kind: str = "unix") -> Iterator[Iterator[tuple[_core.BlockBuffer, int]]]:
    """Give the blocks as they come, each in the one buffer; all as pages, save perhaps the first."""
    readable, writable = open_pair(kind)
    sender = Sender(writable, source, blocks, plain=True)
    stream, blk = receiver(readable)
    try:
        yield ((blk, block) for block in each_block(stream, blk))
    finally:
        os.close(readable)  # first: then the sender ends, whatever happened here
        sender.join(20)
        assert not sender.is_alive()


def block_of(byte: bytes, kind: Literal["own", "moved"] = "moved") -> _core.BlockBuffer:
    """Return a block that may be moved, unless it is of another `kind`."""
    blk = _core.BlockBuffer(kind)
    blk.data[:] = byte * MiB
    blk.filled(MiB)
    return blk


def storing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "blkmig-store"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert storing_threads() == []


@pytest.fixture
def target(tmp_path: Path) -> Iterator[files.FileBackend]:
    with files.FileBackend.create(tmp_path / "target", NBLOCKS * MiB) as backend:
        yield backend


# -- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp"])
def test_blocks_are_stored(source: Path, target: files.FileBackend, tmp_path: Path, content: bytes, kind: str) -> None:
    blocks, pages = [*range(NBLOCKS), *range(NBLOCKS)], 0
    with arriving(source, blocks, kind) as coming:
        for blk, block in coming:
            pages += blk.has_pages
            target.write_block(blk, block * MiB, MiB)
            assert not blk.has_pages
    assert pages >= len(blocks) - 1  # of the first, some may have come with the byte before it
    assert len(storing_threads()) == 1
    target.flush()
    assert (tmp_path / "target").read_bytes() == content


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp"])
@pytest.mark.parametrize("seed", range(12))
def test_nothing_overtakes(source: Path, tmp_path: Path, content: bytes, seed: int, kind: str) -> None:
    """Blocks at any sector, zeros, plain writes, reads, growth: the file is as if one came after the other."""
    rng, model = random.Random(seed), bytearray(NBLOCKS * MiB)
    spare = _core.BlockBuffer()
    blocks = [rng.randrange(NBLOCKS) for _ in range(60)]
    target = files.FileBackend.create(tmp_path / "target", len(model))
    with target, arriving(source, blocks, kind) as coming:
        for blk, block in coming:
            offset = rng.randrange(len(model) - MiB) // 512 * 512
            target.write_block(blk, offset, MiB)
            model[offset : offset + MiB] = content[block * MiB : (block + 1) * MiB]
            place, nbytes = rng.randrange(len(model) - MiB), rng.randrange(1, MiB)
            action = rng.choice(["nothing", "zeroes", "pwrite", "block", "read", "pread", "grow", "flush", "next_data"])
            if action == "zeroes":  # also right behind the block, which then need not be waited for
                place = rng.choice([place, offset + MiB, max(0, offset - nbytes)])
                nbytes = min(nbytes, len(model) - place)
                target.write_zeroes(place, nbytes)
                model[place : place + nbytes] = bytes(nbytes)
            elif action == "pwrite":
                target.pwrite(b"?" * nbytes, place)
                model[place : place + nbytes] = b"?" * nbytes
            elif action == "block":
                spare.data[:] = bytes([rng.randrange(256)]) * MiB
                spare.filled(MiB)
                target.write_block(spare, place, nbytes)
                model[place : place + nbytes] = bytes(spare.data[:nbytes])
            elif action == "read":
                target.read_block(spare, place, MiB)
                assert spare.payload == model[place : place + MiB], f"seed {seed}"
            elif action == "pread":
                assert target.pread(place, nbytes) == model[place : place + nbytes], f"seed {seed}"
            elif action == "grow":
                target.resize(target.size + CLUSTER)
                model += bytes(CLUSTER)
            elif action == "flush":
                target.flush()
            elif action == "next_data" and (extent := target.next_data(place)) is not None:
                assert not any(model[place : extent[0]]), f"seed {seed}"
        target.flush()
    assert (tmp_path / "target").read_bytes() == model, f"seed {seed}"


def test_zeros_wait_for_any_block_below_them(source: Path, target: files.FileBackend, content: bytes) -> None:
    """Not only for the last one that was put."""
    with arriving(source, [0, 1, 3, 4, 5] * 20) as coming:
        for blk, block in coming:
            target.write_block(blk, block * MiB, MiB)
            if block == 5:
                target.write_zeroes(4 * MiB, MiB)
                assert target.pread(4 * MiB, MiB) == bytes(MiB)
    expected = bytearray(content)
    expected[2 * MiB : 3 * MiB] = expected[4 * MiB : 5 * MiB] = bytes(MiB)
    assert target.pread(0, len(expected)) == expected


def test_a_payload_that_is_looked_at_again_is_stored_at_once(target: files.FileBackend) -> None:
    blk = block_of(b"x", "own")
    target.write_block(blk, 0, MiB)
    assert storing_threads() == []
    assert blk.payload == target.pread(0, MiB) == b"x" * MiB


def test_a_payload_with_a_view_stays(target: files.FileBackend) -> None:
    """Whoever looks at it would see another block's bytes one day."""
    blk = block_of(b"x")
    with blk.data, pytest.raises(BufferError, match="view"):
        target.write_block(blk, 0, MiB)
    assert blk.payload == b"x" * MiB
    target.write_block(blk, 0, MiB)
    assert target.pread(0, MiB) == b"x" * MiB


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp"])
def test_blocks_wait_for_the_thread(source: Path, tmp_path: Path, content: bytes, kind: str) -> None:
    """So many as may wait, before it runs; those that come when no more may are stored as well, and in order."""
    may_wait, total = {"pipe": 4, "unix": 4, "tcp": 2}[kind], 16
    queue = _storing.StoringQueue(CLUSTER, 4, 2, 4)
    full = threading.Event()
    path = tmp_path / "target"
    with path.open("w+b") as file:

        def store() -> None:
            assert full.wait(20)
            queue.run()

        thread = threading.Thread(target=store)
        thread.start()
        with arriving(source, [number % NBLOCKS for number in range(total)], kind) as coming:
            for number, (blk, _) in enumerate(coming):
                if number == may_wait:
                    assert path.stat().st_size == 0
                    full.set()
                queue.put(blk, file.fileno(), number * MiB, True)
        queue.drain()
        queue.close()
        thread.join(20)
    assert not thread.is_alive()
    expected = b"".join(content[number % NBLOCKS * MiB :][:MiB] for number in range(total))
    assert path.read_bytes() == expected


def test_without_holes_all_is_written(source: Path, tmp_path: Path, content: bytes) -> None:
    """As pages, and as what `data` holds, in a file that has no use for holes."""
    queue = _storing.StoringQueue(0, 4, 2, 4)
    thread = threading.Thread(target=queue.run)
    thread.start()
    with (tmp_path / "target").open("w+b") as file, arriving(source, [0, 2]) as coming:
        os.truncate(file.fileno(), 3 * MiB)
        for blk, block in coming:
            queue.put(blk, file.fileno(), block * MiB, False)
        queue.put(block_of(b"\0"), file.fileno(), MiB, False)
        queue.drain()
        queue.close()
        thread.join(20)
        assert not thread.is_alive()
        assert _core.next_data(file.fileno(), 0, 3 * MiB) == (0, 3 * MiB)
        assert os.pread(file.fileno(), 3 * MiB, 0) == content[:MiB] + bytes(MiB) + content[2 * MiB : 3 * MiB]


def test_without_threads_it_is_stored_at_once(
    source: Path, target: files.FileBackend, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with arriving(source, [3, 4]) as coming:
        monkeypatch.setattr(storing.threading.Thread, "start", fail)
        for blk, block in coming:
            target.write_block(blk, block * MiB, MiB)
    monkeypatch.undo()
    assert target.pread(3 * MiB, 2 * MiB) == content[3 * MiB : 5 * MiB]


def test_another_thread_may_look_meanwhile(source: Path, target: files.FileBackend, content: bytes) -> None:
    """A guest's reads are for any thread; none of them may hang, nor make zeros overtake a block."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            target.pread(4 * MiB, 4096)
            target.next_data(0)

    with concurrent.futures.ThreadPoolExecutor(2) as pool, arriving(source, [0, 1, 3, 4, 5] * 40) as coming:
        looking = [pool.submit(look) for _ in range(2)]
        try:
            for blk, block in coming:
                target.write_block(blk, block * MiB, MiB)
                if block == 5:
                    target.write_zeroes(4 * MiB, MiB)
                    assert target.pread(4 * MiB, MiB) == bytes(MiB)
        finally:
            done.set()
        for each in looking:
            each.result(20)
    assert target.pread(5 * MiB, MiB) == content[5 * MiB :]


# -- errors ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_block_that_cannot_be_stored_is_told_with_its_place(
    source: Path, target: files.FileBackend, tmp_path: Path, content: bytes
) -> None:
    """Whatever is called next, and again until the disk is closed; what was put before is stored, and nothing after."""
    caught: list[errors.DeviceError] = []

    def note(call: Callable[[], object]) -> None:
        try:
            call()
        except errors.DeviceError as error:
            caught.append(error)

    with files_of_at_most(3 * MiB + 4096), arriving(source, list(range(NBLOCKS))) as coming:
        for blk, block in coming:
            note(lambda: target.write_block(blk, block * MiB, MiB))  # noqa: B023 - called at once
        before = len(caught)
        for call in (target.flush, lambda: target.write_zeroes(0, 512), lambda: target.pread(0, 512), target.flush):
            note(call)
        note(lambda: target.zeroes_end(5 * MiB))
    assert len(caught) == before + 5
    for error in caught:
        assert (error.offset, error.nbytes, error.errno) == (3 * MiB, MiB, errno.EFBIG)
        assert "cannot write" in str(error)
    written = (tmp_path / "target").read_bytes()
    assert written[: 3 * MiB] == content[: 3 * MiB]
    assert not any(written[3 * MiB + 4096 :])


def test_a_disk_that_is_closed_stores_no_more(source: Path, tmp_path: Path) -> None:
    """Its descriptor may be another file's by then."""
    for _ in range(20):
        with arriving(source, list(range(NBLOCKS))) as coming:
            target = files.FileBackend.create(tmp_path / "target", NBLOCKS * MiB)
            for blk, block in coming:
                target.write_block(blk, block * MiB, MiB)
            target.close()
            assert storing_threads() == []
            other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
            os.close(other)
        (tmp_path / "target").unlink()
    assert (tmp_path / "other").stat().st_size == 0


def test_closing_stores_what_waits(source: Path, tmp_path: Path, content: bytes) -> None:
    """Also without a flush, and after an error of something else: what was written is there, as after pwrite."""
    for leave in (contextlib.nullcontext, lambda: pytest.raises(ZeroDivisionError)):
        with leave(), files.FileBackend.create(tmp_path / "target", NBLOCKS * MiB) as target:
            with arriving(source, list(range(NBLOCKS))) as coming:
                for blk, block in coming:
                    target.write_block(blk, block * MiB, MiB)
            if leave is not contextlib.nullcontext:
                raise ZeroDivisionError
        assert (tmp_path / "target").read_bytes() == content
        (tmp_path / "target").unlink()


@contextlib.contextmanager
def one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[files.FileBackend]:
    """Give a disk with two blocks that wait; the second cannot be stored, which nobody knows when the body begins."""
    begin, run = threading.Event(), threading.Thread.run
    target = files.FileBackend.create(tmp_path / "target", NBLOCKS * MiB)
    with monkeypatch.context() as patch, files_of_at_most(3 * MiB):
        patch.setattr(threading.Thread, "run", lambda self: begin.wait(20) and run(self))
        target.write_block(block_of(b"a"), 0, MiB)
        target.write_block(block_of(b"b"), 3 * MiB, MiB)
        begin.set()
        yield target
    target.close()  # closing twice does no harm
    with files.FileBackend(tmp_path / "target") as again:  # which its locks would not let us
        assert again.pread(0, MiB) == b"a" * MiB


def test_closing_tells_what_could_not_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_that_fails(tmp_path, monkeypatch) as target:
        with pytest.raises(errors.DeviceError, match="too large") as caught:
            target.close()
    assert (caught.value.offset, caught.value.nbytes, caught.value.errno) == (3 * MiB, MiB, errno.EFBIG)


def test_closing_says_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_that_fails(tmp_path, monkeypatch) as target:
        with pytest.raises(errors.DeviceError, match="too large"):
            target.flush()
        target.close()


def test_closing_hides_no_other_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_that_fails(tmp_path, monkeypatch) as target:
        with pytest.raises(ZeroDivisionError) as caught, target:
            raise ZeroDivisionError
    (note,) = caught.value.__notes__
    assert note.startswith("and then: ")
    assert str(3 * MiB) in note


def test_a_closed_disk_takes_no_block(source: Path, tmp_path: Path) -> None:
    target = files.FileBackend.create(tmp_path / "target", NBLOCKS * MiB)
    target.close()
    with arriving(source, [0, 1, 2]) as coming:
        for blk, block in coming:
            with pytest.raises(errors.DeviceError, match="closed"):
                target.write_block(blk, block * MiB, MiB)


def test_descriptors_are_given_back(source: Path, tmp_path: Path) -> None:
    with descriptors.given_back():
        with files.FileBackend.create(tmp_path / "target", NBLOCKS * MiB) as target:
            with arriving(source, list(range(NBLOCKS)) * 2) as coming:
                for blk, block in coming:
                    target.write_block(blk, block * MiB, MiB)
            target.flush()
        del blk, coming, target
