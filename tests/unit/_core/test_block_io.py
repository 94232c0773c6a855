# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and writing blocks of files: short files, holes, interruptions, and every way in which it fails."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pathlib
import random
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from blkmig import _core, _stream

MiB = 1 << 20
NOISE = random.Random(5).randbytes(MiB)
PUNCHABLE = pathlib.Path("/dev/shm")


@pytest.fixture
def blk() -> _core.BlockBuffer:
    block = _core.BlockBuffer()
    block.data[:] = b"\xee" * MiB  # what was there before must not shine through
    block.filled(MiB)
    return block


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Callable[[bytes], int]]:
    """Return a function that makes a file with some content and gives its fd."""
    with contextlib.ExitStack() as stack:

        def make(content: bytes) -> int:
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            path.write_bytes(content)
            fd = os.open(path, os.O_RDWR)
            stack.callback(os.close, fd)
            return fd

        yield make


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


@contextlib.contextmanager
def no_room_beyond(nbytes: int) -> Iterator[None]:
    """Let no file grow beyond `nbytes`: EFBIG, and short writes up to there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


# ---- whole buffers ----


@pytest.mark.parametrize("nbytes", [0, 1, 511, 4096, MiB])
def test_pread_full(make: Callable[[bytes], int], nbytes: int) -> None:
    fd = make(NOISE[:10000])
    for offset in (0, 1, 5000, 9999, 10000, 20000):
        buffer = bytearray(b"\xaa" * nbytes)
        expected = NOISE[:10000][offset : offset + nbytes]
        assert _core.pread_full(fd, buffer, offset) == len(expected)
        assert buffer == expected + b"\xaa" * (nbytes - len(expected))


def test_pwrite_full(make: Callable[[bytes], int]) -> None:
    fd = make(b"")
    _core.pwrite_full(fd, NOISE[:100], 50)
    _core.pwrite_full(fd, memoryview(bytearray(NOISE))[:10], 0)
    _core.pwrite_full(fd, b"", 999)
    assert content(fd) == NOISE[:10] + bytes(40) + NOISE[:100]


def test_short_write_then_error(make: Callable[[bytes], int]) -> None:
    """The kernel takes 100 of 1,000 bytes and then no more."""
    fd = make(b"")
    with no_room_beyond(100), pytest.raises(OSError, match="File too large") as caught:
        _core.pwrite_full(fd, NOISE[:1000], 0)
    assert caught.value.errno == errno.EFBIG
    assert content(fd) == NOISE[:100]


def test_errors_have_their_errno(make: Callable[[bytes], int], tmp_path: pathlib.Path) -> None:
    fd = make(NOISE[:100])
    directory = os.open(tmp_path, os.O_RDONLY)
    reader, writer = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        for bad, offset, expected in (
            (-1, 0, errno.EBADF),
            (directory, 0, errno.EISDIR),
            (reader, 0, errno.ESPIPE),
            (fd, -1, errno.EINVAL),
            (memory, 0, errno.EIO),
        ):
            for read in (
                lambda bad=bad, offset=offset: _core.pread_full(bad, bytearray(10), offset),
                lambda bad=bad, offset=offset: _core.BlockBuffer().fill(bad, offset, 10),
                lambda bad=bad, offset=offset: _core.BlockBuffer().fill_mapped(_core.Mapping(fd, 10), bad, offset, 10),
            ):
                with pytest.raises(OSError) as caught:  # noqa: PT011
                    read()
                assert caught.value.errno == expected, (bad, offset)
        for bad, offset, expected in (
            (-1, 0, errno.EBADF),
            (full, 0, errno.ENOSPC),
            (writer, 0, errno.ESPIPE),
            (fd, -1, errno.EINVAL),
            (memory, 0, errno.EBADF),
        ):
            for write in (
                lambda bad=bad, offset=offset: _core.pwrite_full(bad, b"x", offset),
                lambda bad=bad, offset=offset: _core.BlockBuffer().store(bad, offset, 1),
            ):
                with pytest.raises(OSError) as caught:  # noqa: PT011
                    write()
                assert caught.value.errno == expected, (bad, offset)
    finally:
        for each in (directory, reader, writer, full, memory):
            os.close(each)


def test_buffers_must_fit() -> None:
    with pytest.raises((BufferError, TypeError)):
        _core.pread_full(0, bytes(10), 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _core.pwrite_full(0, "text", 0)  # type: ignore[arg-type]


# ---- a block from a file ----


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("size", [0, 1, 511, 4095, 4096, 4097, MiB - 1, MiB, MiB + 1, 3 * MiB])
def test_fill(make: Callable[[bytes], int], blk: _core.BlockBuffer, size: int, mapped: bool) -> None:
    data = (NOISE * 4)[:size]
    fd = make(data)
    mapping = _core.Mapping(fd, size)
    for offset in (0, 512, MiB - 512, MiB, 2 * MiB):
        for nbytes in (0, 1, 512, 4096, 5000, MiB - 1, MiB):
            expected = data[offset : offset + nbytes].ljust(MiB, b"\0")
            zero = (
                blk.fill_mapped(mapping, fd, offset, nbytes) if mapped else blk.fill(fd, offset, nbytes)
            )
            assert zero == blk.is_zero == (not any(expected))
            assert bytes(blk.payload) == expected, (offset, nbytes)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("place", [0, 4095, 4096, 8191, MiB // 2, MiB - 1])
def test_one_byte_decides(make: Callable[[bytes], int], blk: _core.BlockBuffer, place: int, mapped: bool) -> None:
    content = bytearray(MiB)
    fd = make(bytes(content))
    mapping = _core.Mapping(fd, MiB)

    def fill() -> bool:
        return blk.fill_mapped(mapping, fd, 0, MiB) if mapped else blk.fill(fd, 0, MiB)

    assert fill()
    assert not any(blk.payload)
    os.pwrite(fd, b"\1", place)
    assert not fill()
    assert blk.payload[place] == 1
    os.pwrite(fd, b"\0", place)
    assert fill()


def test_filled(blk: _core.BlockBuffer) -> None:
    for nbytes in (0, 1, 512, MiB - 1, MiB):
        blk.data[:] = b"\xee" * MiB
        blk.data[:nbytes] = bytes(nbytes)
        assert blk.filled(nbytes)
        assert not any(blk.payload)
        if nbytes:
            blk.data[nbytes - 1] = 7
            assert not blk.filled(nbytes)
            assert not blk.is_zero
    assert blk.payload.readonly
    assert not blk.data.readonly
    assert len(blk.payload) == len(blk.data) == memoryview(blk).nbytes == MiB


@pytest.mark.parametrize("nbytes", [-1, MiB + 1, 1 << 40])
def test_more_than_a_block(make: Callable[[bytes], int], blk: _core.BlockBuffer, nbytes: int) -> None:
    fd = make(b"")
    for call in (
        lambda: blk.fill(fd, 0, nbytes),
        lambda: blk.fill_mapped(_core.Mapping(fd, 0), fd, 0, nbytes),
        lambda: blk.filled(nbytes),
        lambda: blk.store(fd, 0, nbytes),
        lambda: blk.store_sparse(fd, 0, nbytes, 4096, False),
    ):
        with pytest.raises(ValueError, match="a block holds 0 to 1048576 bytes"):
            call()


def test_new_block_is_zero() -> None:
    blk = _core.BlockBuffer()
    assert blk.is_zero
    assert not any(blk.payload)


# ---- mappings ----


def test_mapped_payload_is_the_file(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    """No copy is made: a later write shows."""
    fd = make(NOISE + NOISE)
    mapping = _core.Mapping(fd, 2 * MiB)
    assert not blk.fill_mapped(mapping, fd, 512, MiB)
    os.pwrite(fd, b"changed", 512)
    assert bytes(blk.payload[:7]) == b"changed"
    assert not blk.fill(fd, 512, MiB)
    os.pwrite(fd, b"again!!", 512)
    assert bytes(blk.payload[:7]) == b"changed"


def test_pages_live_as_long_as_somebody_shows_them(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    fd = make(NOISE)
    mapping = _core.Mapping(fd, MiB)
    blk.fill_mapped(mapping, fd, 0, MiB)
    view = blk.payload
    mapping.close()
    mapping.close()
    del mapping
    gc.collect()
    assert bytes(blk.payload) == NOISE
    blk.fill(fd, 0, MiB)
    assert bytes(view) == NOISE


def test_closed_mapping_is_not_used(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    fd = make(NOISE)
    mapping = _core.Mapping(fd, MiB)
    mapping.close()
    assert not blk.fill_mapped(mapping, fd, 0, MiB)
    os.pwrite(fd, bytes(MiB), 0)
    assert bytes(blk.payload) == NOISE


def test_file_truncated_before_the_pages_are_there(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    """The mapping has nothing behind the new end: the block is read, and what is gone is zeros."""
    fd = make(NOISE + NOISE)
    mapping = _core.Mapping(fd, 2 * MiB)
    os.truncate(fd, MiB + 5000)
    assert not blk.fill_mapped(mapping, fd, MiB, MiB)
    assert bytes(blk.payload) == NOISE[:5000] + bytes(MiB - 5000)
    os.truncate(fd, MiB)
    assert blk.fill_mapped(mapping, fd, MiB, MiB)
    assert not any(blk.payload)


def test_file_truncated_before_it_is_stored(make: Callable[[bytes], int], blk: _core.BlockBuffer) -> None:
    """Pages that have gone are never touched: store reads the file again."""
    fd, target = make(NOISE), make(b"")
    blk.fill_mapped(_core.Mapping(fd, MiB), fd, 0, MiB)
    os.truncate(fd, 3 * 4096)
    blk.store(target, 0, MiB)
    assert content(target) == NOISE[: 3 * 4096] + bytes(MiB - 3 * 4096)
    blk.fill_mapped(_core.Mapping(fd, 3 * 4096), fd, 0, MiB)
    os.truncate(target, 0)
    assert blk.store_sparse(target, 0, MiB, 4096, False) == 3 * 4096


def test_mapping_errors(make: Callable[[bytes], int]) -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        _core.Mapping(make(b""), -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.Mapping(-1, 10)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="No such device"):
        _core.Mapping(reader, 10)
    os.close(reader)
    os.close(writer)
    assert _core.Mapping(make(b""), 0).size == 0
    assert memoryview(_core.Mapping(make(b"abc"), 3)).tobytes() == b"abc"
    assert memoryview(_core.Mapping(make(b""), 0)).nbytes == 0


# ---- a block to a file ----


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


# ---- holes ----


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


# ---- interruptions ----


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
            buffer = _stream.InputBuffer(fd)
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
            _stream.InputBuffer(reader).get_byte()
    finally:
        signal.signal(signal.SIGALRM, old)
        os.close(reader)
        os.close(writer)
