# SPDX-License-Identifier: GPL-2.0-or-later
"""Storing blocks, holes and interruptions."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from block_files import MiB, content
from block_files import blk as blk
from block_files import make as make

from blkmig import _core, _input

NOISE = random.Random(5).randbytes(MiB)
PUNCHABLE = pathlib.Path("/dev/shm")


@pytest.mark.parametrize("nbytes", [0, 1, 512, 4097, MiB])
def test_store(make: Callable[[bytes], int], blk: _core.BlockBuffer, nbytes: int) -> None:
    fd = make(b"\xaa" * 5000)
    blk.data[:] = NOISE
    blk.store(fd, 700, nbytes)
    assert content(fd) == (b"\xaa" * 700 + NOISE[:nbytes]).ljust(max(5000, 700 + nbytes), b"\xaa")


def clusters(rnd: random.Random, nbytes: int, cluster: int, offset: int) -> bytes:
    """Return random clusters of data and zeros, cut as the target sees them."""
    data = bytearray(NOISE[:nbytes])
    at = 0
    while at < nbytes:
        end = min(nbytes, at + cluster - (offset + at) % cluster)
        if rnd.random() < 0.5:
            data[at:end] = bytes(end - at)
        at = end
    return bytes(data)


@pytest.mark.parametrize("allocate", [False, True])
@pytest.mark.parametrize("punch", [False, True])
@pytest.mark.parametrize("cluster", [512, 4096, 65536, MiB, 3 * MiB, 1000])
@pytest.mark.parametrize("offset", [0, 512, 4096, MiB - 512])
def test_store_sparse(
    make: Callable[[bytes], int], blk: _core.BlockBuffer, cluster: int, offset: int, punch: bool, allocate: bool
) -> None:
    rnd = random.Random(f"{cluster} {offset} {punch}")
    for nbytes in (0, 1, 511, 70000, MiB):
        data = clusters(rnd, nbytes, cluster, offset)
        before = (b"\xaa" if punch else b"\0") * 3 * MiB
        fd = make(before)
        blk.data[:nbytes] = data
        written = blk.store_sparse(fd, offset, nbytes, cluster, punch, allocate)
        assert content(fd) == before[:offset] + data + before[offset + nbytes :]
        assert written <= nbytes
        assert (written == 0) == (not any(data))


@pytest.mark.parametrize("allocate", [False, True])
@pytest.mark.parametrize("cluster", [4096, 65536])
def test_zero_clusters_are_holes(blk: _core.BlockBuffer, cluster: int, allocate: bool) -> None:
    """On a file system with holes: punched clusters give their storage back, skipped ones never take any."""
    path = PUNCHABLE / f"blkmig-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    try:
        os.pwrite(fd, NOISE, 0)
        blk.data[:] = NOISE
        blk.data[cluster : 3 * cluster] = bytes(2 * cluster)
        blk.data[MiB - cluster :] = bytes(cluster)
        assert blk.store_sparse(fd, 0, MiB, cluster, True) == MiB - 3 * cluster
        assert os.fstat(fd).st_blocks * 512 == MiB - 3 * cluster
        assert os.fstat(fd).st_size == MiB
        assert content(fd) == bytes(blk.data)
        os.truncate(fd, 0)
        os.truncate(fd, MiB)
        assert blk.store_sparse(fd, 0, MiB, cluster, False, allocate) == MiB - 3 * cluster
        assert os.fstat(fd).st_blocks * 512 == MiB - 3 * cluster
        assert content(fd) == bytes(blk.data)
    finally:
        os.close(fd)


def test_where_holes_are_not_supported_zeros_are_written(blk: _core.BlockBuffer) -> None:
    """/dev/null takes writes and no holes: every byte counts as written."""
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        blk.filled(0)
        assert blk.store_sparse(fd, 0, MiB, 65536, False) == 0
        assert blk.store_sparse(fd, 0, MiB, 65536, True) == MiB
    finally:
        os.close(fd)


def test_store_sparse_errors(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    fd = make(b"")
    for cluster in (0, -1):
        with pytest.raises(ValueError, match="at least one byte"):
            blk.store_sparse(fd, 0, MiB, cluster, False)
    full = os.open("/dev/full", os.O_RDWR)
    try:
        for punch in (False, True):
            with pytest.raises(OSError, match="No space left"):
                blk.store_sparse(full, 0, MiB, 4096, punch)
    finally:
        os.close(full)
    with pytest.raises(OSError, match="Bad file descriptor"):
        blk.store_sparse(-1, 0, MiB, 4096, True)
    blk.filled(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        blk.store_sparse(-1, 0, MiB, 4096, True)


@pytest.fixture
def sparse() -> Iterator[int]:
    """Return a file in a file system with holes: 1 MiB of data at 2 MiB and at 5 MiB, 8 MiB in all."""
    path = PUNCHABLE / f"blkmig-test-sparse-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    os.truncate(fd, 8 * MiB)
    os.pwrite(fd, NOISE, 2 * MiB)
    os.pwrite(fd, NOISE, 5 * MiB)
    yield fd
    os.close(fd)


def test_next_data(sparse: int) -> None:
    def find(offset: int, size: int = 8) -> tuple[float, float] | None:
        found = _core.next_data(sparse, offset * MiB, size * MiB)
        return found and (found[0] / MiB, found[1] / MiB)

    assert find(0) == (2, 3)
    assert find(2) == (2, 3)
    assert find(3) == (5, 6)
    assert find(6) is None
    assert find(8) is None
    assert find(100) is None
    assert find(0, 2) is None
    assert find(0, 100) == (2, 3)
    assert _core.next_data(sparse, 5 * MiB + 4096, 5 * MiB + 8192) == (5 * MiB + 4096, 5 * MiB + 8192)
    assert _core.next_data(sparse, 5, 5) is None


def test_next_data_where_nobody_can_tell() -> None:
    """A device that answers every lseek with 0 is all data."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    found = _core.next_data(fd, 100, 5000)
    os.close(fd)
    assert found == (100, 5000)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.next_data(-1, 0, 10)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        _core.next_data(reader, 0, 10)
    os.close(reader)
    os.close(writer)


def test_punch_hole(sparse: int) -> None:
    _core.punch_hole(sparse, 2 * MiB, MiB)
    assert _core.next_data(sparse, 0, 8 * MiB) == (5 * MiB, 6 * MiB)
    _core.punch_hole(sparse, 7 * MiB, 5 * MiB)
    assert os.fstat(sparse).st_size == 8 * MiB
    for offset, nbytes in ((-1, 1), (0, 0), (0, -1)):
        with pytest.raises(OSError, match="Invalid argument"):
            _core.punch_hole(sparse, offset, nbytes)


def test_zero_range(make: Callable[[bytes], int]) -> None:
    fd = make(NOISE)
    try:
        _core.zero_range(fd, 4096, 8192)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # noqa: PT017
        pytest.skip("the file system cannot zero ranges")
    assert content(fd) == NOISE[:4096] + bytes(8192) + NOISE[12288:]


def test_zero_out_is_for_devices(make: Callable[[bytes], int]) -> None:
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        _core.zero_out(make(NOISE), 0, 4096)


@contextlib.contextmanager
def interruptions(handler: Callable[[], None]) -> Iterator[None]:
    """Interrupt this thread's system calls every 2 ms until the block is left; `handler` must not raise."""
    main = threading.get_ident()
    over = threading.Event()

    def strike() -> None:
        while not over.wait(0.002):
            signal.pthread_kill(main, signal.SIGUSR1)

    old = signal.signal(signal.SIGUSR1, lambda *_: handler())
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, old)


def _slow_device(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a FIFO: the only file of this machine on which a read can be made to wait."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_eintr_goes_on_and_runs_handlers(tmp_path: pathlib.Path) -> None:
    """A read that waits is interrupted again and again, and in the end has every byte."""
    struck: list[int] = []
    path = _slow_device(tmp_path)
    with subprocess.Popen(["/bin/sh", "-c", f"sleep 0.05; printf ready >{path}"]):
        fd = os.open(path, os.O_RDONLY)
        with interruptions(lambda: struck.append(1)):
            buffer = _input.InputBuffer(fd)
            assert buffer.get_buffer(5) == b"ready"
    os.close(fd)


class Interrupted(Exception):
    """Raised by the handler of the test below."""


def test_handler_that_raises_ends_the_wait() -> None:
    def stop(*_: object) -> None:
        raise Interrupted

    reader, writer = os.pipe()
    old = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Interrupted):  # noqa: PT012 - the timer and what it strikes
            signal.setitimer(signal.ITIMER_REAL, 0.02)  # once: nothing is left to strike outside of this block
            _input.InputBuffer(reader).get_byte()
    finally:
        signal.signal(signal.SIGALRM, old)
        os.close(reader)
        os.close(writer)
