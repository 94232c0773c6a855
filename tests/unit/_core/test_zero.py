# SPDX-License-Identifier: GPL-2.0-or-later
"""Zero detection: every kernel gives the same answers on one grid, and none looks outside the buffer."""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from blkmig import _core

ALIGNMENTS = (0, 1, 7, 8, 31, 33, 63)
LENGTHS = (*range(200), 255, 256, 257, 319, 320, 511, 512, 513, 575, 576, 577, 639, 640, 641, 1023, 1024, 1025, 1153)


@pytest.fixture(params=_core.zero_kernels)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_grid(kernel: str, alignment: int) -> None:
    """alignment x length x position of the one byte that is not zero, between bytes that are not zero either."""
    page = mmap.mmap(-1, 4096)
    for length in LENGTHS:
        page[:] = b"\xff" * len(page)
        page[alignment : alignment + length] = bytes(length)
        view = memoryview(page)[alignment : alignment + length]
        assert _core.buffer_is_zero_using(kernel, view), length
        for position in range(length):
            view[position] = 1 << position % 8
            assert not _core.buffer_is_zero_using(kernel, view), (length, position)
            view[position] = 0
        assert _core.buffer_is_zero_using(kernel, view), length
        view.release()


@pytest.mark.parametrize(
    "length", [65536, 65537, (512 << 10) - 1, 512 << 10, (512 << 10) + 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 65]
)
def test_large(kernel: str, length: int) -> None:
    """From 512 KiB on another path runs, without the GIL."""
    data = bytearray(length)
    assert _core.buffer_is_zero_using(kernel, data)
    for position in {0, 1, 63, 64, 511, 512, 4095, 4096, length // 2, length - 513, length - 65, length - 1}:
        data[position] = 0x80
        assert not _core.buffer_is_zero_using(kernel, data), position
        data[position] = 0


def test_no_byte_outside_is_read(kernel: str) -> None:
    """The buffer begins or ends where memory does."""
    size = mmap.PAGESIZE
    pages = mmap.mmap(-1, 3 * size)
    base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    for outer in (base, base + 2 * size):
        assert mprotect(ctypes.c_void_p(outer), ctypes.c_size_t(size), 0) == 0
    view = memoryview(pages)
    for length in (*range(700), size - 1, size):
        assert _core.buffer_is_zero_using(kernel, view[size : size + length])
        assert _core.buffer_is_zero_using(kernel, view[2 * size - length : 2 * size])


def test_kernels_are_named() -> None:
    assert _core.zero_kernels[0] == "portable"
    assert _core.zero_kernel in _core.zero_kernels
    assert set(_core.zero_kernels) <= {"portable", "avx2", "avx512", "neon"}


def test_what_the_cpu_has_is_found() -> None:
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    assert ("avx2" in _core.zero_kernels) == ("avx2" in flags)
    assert ("avx512" in _core.zero_kernels) == ("avx512f" in flags)


@pytest.mark.parametrize("name", ["", "AVX2", "sse9", "portable\0"])
def test_unknown_kernel(name: str) -> None:
    with pytest.raises(ValueError, match=r"no zero kernel is called .*use one of portable"):
        _core.buffer_is_zero_using(name, b"")


def _import_with(kernel: str) -> subprocess.CompletedProcess[str]:
    code = "from blkmig import _core; print(_core.zero_kernel, _core.buffer_is_zero(bytes(99)))"
    env = {**os.environ, "BLKMIG_ZERO_KERNEL": kernel, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_environment_forces_a_kernel(kernel: str) -> None:
    assert _import_with(kernel).stdout.split() == [kernel, "True"]


def test_environment_refuses_what_is_not_there() -> None:
    result = _import_with("vax780")
    assert result.returncode != 0
    assert "ImportError: BLKMIG_ZERO_KERNEL=vax780: no zero kernel is called 'vax780'" in result.stderr


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        bytearray,
        lambda n: memoryview(bytearray(n)),
        lambda n: array.array("Q", bytes(n)),
        lambda n: np.zeros(n, np.uint8),
        lambda n: np.zeros((2, n // 16), np.float64),
        lambda n: mmap.mmap(-1, n),
        lambda n: (ctypes.c_char * n)(),
    ],
)
@pytest.mark.parametrize("nbytes", [4096, 1 << 17])
def test_any_contiguous_buffer(make: object, nbytes: int) -> None:
    assert _core.buffer_is_zero(make(nbytes))  # type: ignore[operator]


def test_subclasses_are_buffers_too() -> None:
    class Bytes(bytes):
        pass

    assert _core.buffer_is_zero(Bytes(8))
    assert not _core.buffer_is_zero(Bytes(b"\0\1"))


def test_what_is_no_contiguous_buffer() -> None:
    with pytest.raises(TypeError):
        _core.buffer_is_zero("0000")  # type: ignore[arg-type]
    with pytest.raises((BufferError, ValueError)):
        _core.buffer_is_zero(np.zeros(64, np.uint8)[::2])
    with pytest.raises(BufferError):
        _core.buffer_is_zero(memoryview(bytes(64))[::2])


def test_the_view_is_let_go() -> None:
    data = bytearray(1 << 17)
    _core.buffer_is_zero(data)
    _core.buffer_is_zero_using("portable", data)
    data.clear()  # BufferError if anybody still held it


def test_others_run_during_a_large_scan() -> None:
    """A scan of 64 MiB of zeros drops the GIL."""
    data = np.zeros(1 << 26, np.uint8)
    ran: list[int] = []
    begin = threading.Event()
    thread = threading.Thread(target=lambda: (begin.wait(), ran.append(1)))
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is asked to give the GIL up: it has to be given
    try:
        begin.set()
        while not ran:
            _core.buffer_is_zero(data)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
