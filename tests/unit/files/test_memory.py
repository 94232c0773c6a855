# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks in memory: which buffers, and what happens to them."""

import array
import mmap
from pathlib import Path

import numpy as np
import pytest

from blkmig import _core, errors, files

MiB = 1 << 20


@pytest.mark.parametrize(
    ("buffer", "size"),
    [
        (bytearray(1000), 1000),
        (bytearray(), 0),
        (array.array("Q", range(10)), 80),
        (np.zeros(300, dtype=np.uint64), 2400),
        (np.zeros((3, 5, 7), dtype=np.uint16), 210),
        (np.zeros((0, 5)), 0),
        (mmap.mmap(-1, 4096), 4096),
        (memoryview(bytearray(100))[10:20], 10),
    ],
)
def test_any_writable_buffer(buffer, size):
    with files.MemoryBackend(buffer, name="m") as backend:
        assert backend.size == size
        assert backend.next_data(0) == ((0, size) if size else None)
        if size:
            backend.pwrite(b"\xff", size - 1)
            assert memoryview(buffer).cast("B")[size - 1] == 0xFF


@pytest.mark.parametrize(
    ("buffer", "why"),
    [
        (bytes(10), "read-only"),
        (np.zeros(10)[::2], "one behind the other"),
        (np.zeros((4, 4), order="F"), "one behind the other"),
        (memoryview(bytearray(10))[::2], "one behind the other"),
        ("text", "bytes are needed"),
        (None, "bytes are needed"),
        (np.zeros(2, "M8[s]"), "bytes are needed"),
    ],
)
def test_other_buffers_are_refused(buffer, why):
    with pytest.raises(errors.ParameterError, match=why):
        files.MemoryBackend(buffer, name="m")
    if why != "read-only":
        with files.MemoryBackend(bytearray(512), name="m") as backend, pytest.raises(errors.WrongType, match=why):
            backend.pwrite(buffer, 0)


def test_any_contiguous_data_can_be_written():
    buffer = bytearray(64)
    backend = files.MemoryBackend(buffer, name="m")
    backend.pwrite(np.arange(4, dtype=">u4").reshape(2, 2), 1)
    backend.pwrite(memoryview(b""), 64)
    backend.pwrite(array.array("H", [0x0101]), 40)
    assert buffer == b"\0" + bytes(range(0)) + b"\0\0\0\0\0\0\0\1\0\0\0\2\0\0\0\3" + bytes(23) + b"\1\1" + bytes(22)


def test_the_buffer_is_free_after_close():
    buffer = bytearray(1000)
    backend = files.MemoryBackend(buffer, name="m")
    with pytest.raises(BufferError):
        buffer.extend(b"x")
    backend.close()
    buffer.extend(b"x")


def test_zeros_over_zeros_touch_nothing():
    """Private memory that was never written stays unbacked: /proc says how much is in use."""
    size = 256 * MiB
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with buffer, files.MemoryBackend(buffer, name="m") as backend:
        backend.pwrite(b"x" * 100, 5 * MiB + 5)
        before = resident()
        backend.write_zeroes(0, size)
        assert backend.pread(5 * MiB, MiB) == bytes(MiB)
        used = resident() - before
    assert used < 32 * MiB


def test_flush_reaches_the_file_of_a_mapping(tmp_path):
    path = tmp_path / "mapped.raw"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as buffer:
        with files.MemoryBackend(buffer, name="m") as backend:
            backend.pwrite(b"hello", 4096)
            backend.flush()
        assert path.read_bytes()[4096:4101] == b"hello"


def test_an_error_of_flush_names_the_disk():
    class Unflushable(bytearray):
        def flush(self):
            raise OSError(5, "Input/output error")

    with (
        files.MemoryBackend(Unflushable(512), name="vda") as backend,
        pytest.raises(errors.DeviceError, match="'vda': cannot flush: Input/output error"),
    ):
        backend.flush()


def test_reading_past_the_end_gives_zeros():
    blk = _core.BlockBuffer()
    blk.data[:] = b"x" * MiB
    with files.MemoryBackend(bytearray(b"y" * 1000), name="m") as backend:
        assert not backend.read_block(blk, 0, 1024)
        assert blk.payload == b"y" * 1000 + bytes(MiB - 1000)
        assert backend.read_block(blk, 4096, 512)


def resident() -> int:
    """Return the bytes of anonymous and shared memory that this process uses."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024
