# SPDX-License-Identifier: GPL-2.0-or-later
"""Other packages cimport blkmig._core: an extension is built against the package as it is imported here, and run.

It also brings what Python cannot: threads that set bits of one bitmap at the very same time, without the GIL.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import types

import pytest

import blkmig
from blkmig import _core

SOURCE = """
# cython: language_level=3
from libc.stdint cimport uint8_t, uint64_t
cimport blkmig._core as core
from blkmig._core cimport Bitmap

constants = (core.BLOCK_SIZE, core.SECTOR_SIZE, core.SECTORS_PER_BLOCK, core.FLAG_ZERO_BLOCK, core.WORD_BITS)

def is_zero(const uint8_t[::1] data):
    return bool(core.buffer_is_zero_c(&data[0], data.shape[0]))

def swapped(uint64_t value):
    cdef uint8_t[8] wire
    core.store_be64(wire, value)
    return bytes(wire[:8]), core.load_be64(wire), core.load_be32(wire), core.load_be16(wire)

def fields(Bitmap bitmap):
    return bitmap.size, bitmap.words[0]

def set_bits(Bitmap bitmap, const uint64_t[::1] bits):
    cdef Py_ssize_t i
    with nogil:
        for i in range(bits.shape[0]):
            core.set_bit(bitmap, bits[i])

def take_bits(Bitmap bitmap, uint64_t start, uint64_t stop):
    cdef uint64_t taken = 0, bit
    with nogil:
        for bit in range(start, stop):
            taken += core.take_bit(bitmap, bit)
    return taken

def test_bits(Bitmap bitmap, uint64_t start, uint64_t stop):
    return [bool(core.test_bit(bitmap, bit)) for bit in range(start, stop)]
"""

SETUP = """
from setuptools import Extension, setup
setup(name="other", ext_modules=[Extension("other", ["other.pyx"])])
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    """Build the extension with no include path and no header but Python's."""
    pytest.importorskip("Cython")
    folder = tmp_path_factory.mktemp("other")
    (folder / "other.pyx").write_text(SOURCE)
    (folder / "setup.py").write_text(SETUP)
    root = str(pathlib.Path(blkmig.__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, sys.path)])
    build = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "CFLAGS": "-O2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("other", next(folder.glob("other*.so")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_constants(other: types.ModuleType) -> None:
    assert other.constants == (1 << 20, 512, 2048, 8, 64)


def test_functions(other: types.ModuleType) -> None:
    assert other.is_zero(bytes(100000))
    assert not other.is_zero(bytes(100) + b"\1")
    assert other.swapped(0x0102030405060708) == (bytes(range(1, 9)), 0x0102030405060708, 0x01020304, 0x0102)


def test_bitmap(other: types.ModuleType) -> None:
    bitmap = _core.Bitmap(100)
    bitmap.set_range(3, 2)
    assert other.fields(bitmap) == (100, 0b11000)
    other.set_bits(bitmap, _numbers([0, 99]))
    assert other.test_bits(bitmap, 0, 6) == [True, False, False, True, True, False]
    assert bitmap.find_next_set(5) == 99
    assert other.take_bits(bitmap, 0, 100) == 4
    assert bitmap.count() == 0


def _numbers(values: list[int]) -> object:
    return memoryview(b"".join(value.to_bytes(8, sys.byteorder) for value in values)).cast("L")


GROUP_BITS = 512 * 64


def _setters(other: types.ModuleType, bitmap: _core.Bitmap, shares: list[list[int]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=other.set_bits, args=(bitmap, _numbers(bits))) for bits in shares]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("nbits", [64, 5000, 50 * GROUP_BITS])
def test_no_bit_is_lost_between_setters_and_movers(other: types.ModuleType, nbits: int) -> None:
    """Setters without the GIL, and two threads that move what they find: every bit ends up in one target."""
    rnd = random.Random(nbits)
    shares = [rnd.sample(range(nbits), min(nbits, 300_000)) for _ in range(2)]
    bitmap, targets = _core.Bitmap(nbits), [_core.Bitmap(nbits), _core.Bitmap(nbits)]
    threads = _setters(other, bitmap, shares)

    def move() -> None:
        while any(thread.is_alive() for thread in threads):
            bitmap.take_into(targets[1])

    mover = threading.Thread(target=move)
    mover.start()
    while any(thread.is_alive() for thread in threads):
        bitmap.take_into(targets[0])
    mover.join()
    bitmap.take_into(targets[0])
    assert bitmap.find_next_set() == -1
    targets[0].merge(targets[1])
    wanted = _core.Bitmap(nbits)
    for bit in {*shares[0], *shares[1]}:
        wanted.set(bit)
    assert bytes(targets[0]) == bytes(wanted)


def test_no_bit_is_lost_where_searches_lower_the_summary(other: types.ModuleType) -> None:
    """Few bits in many groups, taken as soon as they are found, so that groups become empty and full all the time."""
    nbits = 32 * GROUP_BITS
    bits = [group * GROUP_BITS + i for i in range(1000) for group in range(32)]
    for _ in range(3):
        bitmap = _core.Bitmap(nbits)
        threads = _setters(other, bitmap, [bits[0::2], bits[1::2]])
        taken = start = 0
        while any(thread.is_alive() for thread in threads) or bitmap.count():
            bit = bitmap.find_next_set(start)
            taken += bit >= 0 and bitmap.take(bit)
            start = bit + 1 if 0 <= bit < nbits - 1 else 0
        assert taken == len(bits)
        assert bytes(bitmap) == bytes(bitmap.nbytes)


@pytest.mark.parametrize("name", ["_core", "_gate", "_leaving", "_output", "_input", "_storing"])
def test_no_python_without_the_gil(name: str, tmp_path: pathlib.Path) -> None:
    """Cython's annotation has no yellow line inside a `with nogil:` block."""
    main = pytest.importorskip("Cython.Compiler.Main")
    source = pathlib.Path(_core.__file__).with_name(f"{name}.pyx")
    if not source.exists():
        pytest.skip("an installed package has no source")
    root = str(source.parent.parent)
    options = main.CompilationOptions(annotate=True, output_file=str(tmp_path / "core.c"), include_path=[root])
    main.compile(str(source), options, full_module_name=f"blkmig.{name}")
    html = (tmp_path / "core.html").read_text()
    line = r'<pre class="cython line score-(\d+)"[^>]*>.*?<span class="">(\d+)</span>: (.*?)\n?</pre>'
    lines = re.findall(line, html, re.DOTALL)
    assert len(lines) == len(source.read_text().splitlines())
    yellow, inside = [], None
    for score, number, text in lines:
        plain = re.sub(r"<[^>]+>", "", text)
        indent = len(plain) - len(plain.lstrip())
        if inside is not None and plain.strip() and indent <= inside:
            inside = None
        if inside is not None and int(score):
            yellow.append((int(number), plain))
        if plain.strip() == "with nogil:":
            inside = indent
    assert yellow == []
