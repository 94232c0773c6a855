# SPDX-License-Identifier: GPL-2.0-or-later
"""Zero detection: against the memory's limit, against other programs' loops, against numpy and bytes."""

from __future__ import annotations

import ctypes
import mmap
import timeit

import numpy as np
import pytest
from harness import tools

from blkmig import _core

KiB, MiB = 1 << 10, 1 << 20
LOOPS = {"limit": "pure_load", "QEMU's loop": "avx2_pipelined", "memcmp": "memcmp_itself"}


@pytest.fixture(scope="module")
def loops(bench_dir):
    """Return the C loops of scan.c, called with the GIL held: name -> function(address, nbytes, times)."""
    if tools.compiler() is None:
        pytest.skip("no C compiler: there is no limit to compare with")
    library = ctypes.PyDLL(tools.Tools(bench_dir / "tools").library("scan"))
    return {name: getattr(library, symbol) for name, symbol in LOOPS.items()}


def zeros(nbytes):
    """Return written zeros, page aligned: memory that was never written is one page, and too fast."""
    memory = mmap.mmap(-1, nbytes)
    memory[:] = b"\1" * nbytes
    memory[:] = bytes(nbytes)
    return memoryview(memory)


def scans(loops, buffer, times):
    """Return the sides that scan `buffer` `times` times; the cost of calling C is spread over all of them."""
    address = ctypes.c_void_p(np.frombuffer(buffer, np.uint8).ctypes.data)
    words, length, count = np.frombuffer(buffer, np.uint64), ctypes.c_size_t(len(buffer)), range(times)

    def ours():
        for _ in count:
            assert _core.buffer_is_zero(buffer)

    def numpy():
        for _ in count:
            assert not np.max(words)

    sides = {"blkmig": ours}
    sides |= {name: lambda loop=loop: loop(address, length, times) for name, loop in loops.items()}
    return sides | {"numpy": numpy}


@pytest.mark.parametrize(("nbytes", "name"), [(256 * KiB, "256 KiB"), (MiB, "1 MiB"), (64 * MiB, "64 MiB")])
def test_scan(ratio, loops, nbytes, name):
    ratio(scans(loops, zeros(nbytes), max(1, 4 * MiB // nbytes)), group=f"zero scan of {name}")


def test_unaligned(ratio, loops):
    """One byte off: blocks start at a cache line all the same."""
    memory = zeros(MiB + 4096)
    aligned, off = memory[:MiB], memory[1 : MiB + 1]
    ratio(
        {"unaligned": lambda: _core.buffer_is_zero(off), "aligned": lambda: _core.buffer_is_zero(aligned)},
        group="zero scan of 1 MiB, one byte off",
    )


@pytest.mark.parametrize("kernel", _core.zero_kernels[1:])
def test_kernels(ratio, kernel):
    """Every kernel against the one before it."""
    buffer, below = zeros(256 * KiB), _core.zero_kernels[_core.zero_kernels.index(kernel) - 1]
    names = (kernel, below)
    ratio(
        {name: lambda name=name: _core.buffer_is_zero_using(name, buffer) for name in names},
        group=f"zero kernel {kernel}",
    )


def test_call(ratio):
    """A short buffer that is not zero: what a call costs."""
    block = b"\1" * 512
    names = {"scan": _core.buffer_is_zero, "any": np.any, "block": block, "array": np.frombuffer(block, np.uint8)}
    ratio(
        {
            "blkmig": timeit.Timer("scan(block)", globals=names),
            "35 ns": lambda: {"wall": 35e-9},
            "numpy": timeit.Timer("any(array)", globals=names),
        },
        group="zero scan, the call",
    )


def test_data(ratio):
    """A block of data is known by a few samples; the others begin to read it."""
    block = np.random.default_rng(1).integers(1, 256, MiB, np.uint8)
    names = {"scan": _core.buffer_is_zero, "max": np.max, "block": block, "words": block.view(np.uint64)}
    ratio(
        {"blkmig": timeit.Timer("scan(block)", globals=names), "numpy": timeit.Timer("max(words)", globals=names)},
        group="zero scan of 1 MiB of data",
    )
