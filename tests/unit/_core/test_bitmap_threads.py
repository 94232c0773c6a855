# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmaps that several threads set, take and search at once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading

import pytest
from bitmap_model import walk

from blkmig import _core

GROUP_BITS = 512 * 64  # one byte of the summary


class Setters:
    """Threads that set bits in random order, each all of its own, so that none may be missing in the end."""

    def __init__(self, bitmap: _core.Bitmap, bits: list[list[int]]) -> None:
        self._over: list[threading.Thread] = []  # not is_alive(), which two threads must not call at once: CPython 3.11
        self._threads = [threading.Thread(target=self._run, args=(bitmap, mine)) for mine in bits]
        for thread in self._threads:
            thread.start()

    def _run(self, bitmap: _core.Bitmap, bits: list[int]) -> None:
        try:
            for bit in bits:
                bitmap.set(bit)
        finally:
            self._over.append(threading.current_thread())

    def alive(self) -> bool:
        return len(self._over) < len(self._threads)


@pytest.fixture
def hasty() -> object:
    """Threads change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("nbits", [100, 40 * GROUP_BITS])
def test_no_bit_is_lost_between_setters_and_take_into(nbits: int) -> None:
    """Every bit that is set arrives once in the target, however the moves fall between."""
    rnd = random.Random(nbits)
    bits = rnd.sample(range(nbits), min(nbits, 20000))
    bitmap, target = _core.Bitmap(nbits), _core.Bitmap(nbits)
    setters = Setters(bitmap, [bits[0::2], bits[1::2]])
    moved = 0
    while setters.alive():
        moved += bitmap.take_into(target)
    moved += bitmap.take_into(target)
    assert moved == len(bits)
    assert walk(target) == sorted(bits)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("nbits", [100, 40 * GROUP_BITS])
def test_no_bit_is_lost_between_setters_and_take_areas(nbits: int) -> None:
    """Every bit that is set is in one list, in one area, whatever runs it makes with its neighbours meanwhile."""
    rnd = random.Random(nbits)
    bits = [start + i for start in rnd.sample(range(0, nbits, 10), min(nbits // 10, 4000)) for i in range(5)]
    bitmap = _core.Bitmap(nbits)
    setters = Setters(bitmap, [bits[0::2], bits[1::2]])
    seen: list[int] = []
    while setters.alive() or bitmap.count():
        for start, count in bitmap.take_areas(max_areas=rnd.choice((1, 7, 100))):
            seen.extend(range(start, start + count))
    assert sorted(seen) == sorted(bits)


@pytest.mark.usefixtures("hasty")
def test_two_that_take_areas_lose_no_bit() -> None:
    """They may both return one; none is cleared that neither returns."""
    bitmap, seen = _core.Bitmap(40 * GROUP_BITS), [set(), set()]
    bits = random.Random(2).sample(range(len(bitmap)), 20000)
    setters = Setters(bitmap, [bits[0::2], bits[1::2]])

    def take(mine: set[int]) -> None:
        while setters.alive() or bitmap.count():
            for start, count in bitmap.take_areas():
                mine.update(range(start, start + count))

    takers = [threading.Thread(target=take, args=(mine,)) for mine in seen]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert seen[0] | seen[1] == set(bits)


@pytest.mark.usefixtures("hasty")
def test_no_bit_is_lost_between_setters_and_searches_that_lower_the_summary() -> None:
    """A large map that is nearly empty: searches without the GIL sweep groups in which bits are just being set."""
    nbits = 64 * GROUP_BITS
    bits = [group * GROUP_BITS + i for i in range(200) for group in range(64)]
    bitmap = _core.Bitmap(nbits)
    setters = Setters(bitmap, [bits[0::2], bits[1::2]])
    seen: list[int] = []
    start = 0
    while setters.alive() or bitmap.count():
        bit = bitmap.find_next_set(start)
        if bit >= 0 and bitmap.take(bit):
            seen.append(bit)
        start = bit + 1 if 0 <= bit < nbits - 1 else 0
    assert sorted(seen) == sorted(bits)
    assert bitmap.find_next_set() == -1


@pytest.mark.usefixtures("hasty")
def test_ranges_in_one_word_do_not_disturb_each_other() -> None:
    bitmap = _core.Bitmap(64)

    def flicker(start: int) -> None:
        for _ in range(5000):
            bitmap.set_range(start, 8)
            assert bitmap.count(start, start + 8) == 8
            assert bitmap.take_range(start, 8)
            assert bitmap.find_next_set(start, start + 8) == -1

    threads = [threading.Thread(target=flicker, args=(start,)) for start in (0, 8, 56)]
    failures: list[object] = []
    hook, threading.excepthook = threading.excepthook, failures.append
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = hook
    assert not failures
    assert bitmap.count() == 0


SEARCHES = """
import random
from blkmig import _core
for nbits in (*range(1, 9 * 64, 61), 2 * 512 * 64 + 700):
    bitmap, other, rnd = _core.Bitmap(nbits), _core.Bitmap(nbits), random.Random(nbits)
    bits = sorted(rnd.sample(range(nbits), min(nbits, 40)))
    for bit in bits:
        other.set(bit)
    bitmap.merge(other)
    found = [bit for bit in range(nbits) if bitmap.test(bit)]
    starts = [rnd.randrange(nbits + 1) for _ in range(200)]
    assert found == bits, (nbits, found)
    for start in starts:
        stop = rnd.randint(start, nbits)
        expected = next((bit for bit in bits if start <= bit < stop), -1)
        assert bitmap.find_next_set(start, stop) == expected, (nbits, start, stop)
    bitmap.set_range(0, nbits)
    for bit in bits:
        bitmap.clear(bit)
    for start in starts:
        expected = next((bit for bit in bits if bit >= start), -1)
        assert bitmap.find_next_clear(start) == expected, (nbits, start)
print(_core.zero_kernel)
"""


@pytest.mark.parametrize("kernel", _core.zero_kernels)
def test_searches_and_merges_with_every_instruction_set(kernel: str) -> None:
    """Their loops follow the choice of the zero kernel, so another process is needed."""
    env = {**os.environ, "BLKMIG_ZERO_KERNEL": kernel, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", SEARCHES], env=env, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == ([kernel], "")
