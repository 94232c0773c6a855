# SPDX-License-Identifier: GPL-2.0-or-later
"""Extents in windows against a map with one entry per sector; and what is done with a block's zeros."""

from __future__ import annotations

import itertools
import random

import pytest

from blkmig.nbd import connection as nbd_connection
from blkmig.nbd import export, extents

MiB = 1 << 20
SECTOR = 512


class FakeConnection:
    """A disk of which each sector has a flag; replies tell of a few extents only, and some pieces are cut in two."""

    def __init__(self, flags: list[int], contexts: tuple[str, ...], rng: random.Random) -> None:
        self.flags = flags
        self.size = len(flags) * SECTOR
        self.contexts = frozenset(contexts)
        self.asked = 0
        self._rng = rng

    def check_home(self) -> None:
        """It is nobody's in a fork's child."""

    def one_block_status(self, context: str, offset: int, nbytes: int) -> list[tuple[int, int]]:
        assert context in self.contexts
        assert 0 < nbytes <= self.size - offset
        self.asked += 1
        reply = []
        sector = offset // SECTOR
        within = offset % SECTOR
        while sector < len(self.flags) and len(reply) < self._rng.randrange(1, 6):
            stop = sector + 1
            while stop < len(self.flags) and self.flags[stop] == self.flags[sector] and self._rng.random() < 0.9:
                stop += 1
            reply.append(((stop - sector) * SECTOR - within, self.flags[sector]))
            sector, within = stop, 0
        return reply


@pytest.mark.parametrize("seed", range(20))
def test_next_data(seed: int) -> None:
    rng = random.Random(seed)
    flags = [rng.choice((0, 1, 2, 3)) for _ in range(rng.randrange(1, 12)) for _ in range(rng.randrange(1, 9))]
    disk = FakeConnection(flags, (nbd_connection.BASE_ALLOCATION,), rng)
    asked = extents.Extents(disk)  # type: ignore[arg-type]
    is_data = [not flag & nbd_connection.STATE_ZERO for flag in flags]
    for _ in range(50):
        offset = rng.randrange(disk.size + 1)
        found = asked.next_data(offset)
        if found is None:
            assert not any(is_data[offset // SECTOR :]) or offset == disk.size, f"seed {seed}"
            continue
        start, end = found
        assert offset <= start < end <= disk.size
        assert all(is_data[start // SECTOR : -(-end // SECTOR)]), f"seed {seed}"
        assert not any(is_data[offset // SECTOR : start // SECTOR]), f"seed {seed}"


@pytest.mark.parametrize("seed", range(20))
def test_next_allocated(seed: int) -> None:
    rng = random.Random(seed)
    flags = [rng.choice((0, 1, 1, 2, 3)) for _ in range(rng.randrange(1, 12)) for _ in range(rng.randrange(1, 9))]
    disk = FakeConnection(flags, (nbd_connection.ALLOCATION_DEPTH,), rng)
    asked = extents.Extents(disk)  # type: ignore[arg-type]
    for _ in range(50):
        offset = rng.randrange(disk.size) // SECTOR * SECTOR
        nbytes = rng.randrange(1, 20) * SECTOR
        sectors = range(offset // SECTOR, min(offset + nbytes, disk.size) // SECTOR)
        first = next((sector for sector in sectors if flags[sector] == 1), None)
        found = asked.next_allocated(offset, nbytes)
        if first is None:
            assert found is None, f"seed {seed}"
            continue
        assert found is not None, f"seed {seed}"
        assert found[0] == first * SECTOR
        assert found[0] < found[1] <= min(offset + nbytes, disk.size)
        assert all(flags[sector] == 1 for sector in range(first, found[1] // SECTOR)), f"seed {seed}"


def test_without_contexts_all_is_data() -> None:
    disk = FakeConnection([2] * 8, (), random.Random(1))
    asked = extents.Extents(disk)  # type: ignore[arg-type]
    assert asked.next_data(100) == (100, 4096)
    assert asked.next_data(4096) is None
    assert asked.next_allocated(512, 1024) == (512, 1536)
    assert asked.next_allocated(4096, 512) is None


def test_remembers_until_told_to_forget() -> None:
    disk = FakeConnection([2, 2, 0, 0], (nbd_connection.BASE_ALLOCATION,), random.Random(3))
    disk.one_block_status = counted = CountedReply([(1024, 2), (1024, 0)])  # type: ignore[assignment, method-assign]
    asked = extents.Extents(disk)  # type: ignore[arg-type]
    assert asked.next_data(0) == asked.next_data(600) == (1024, 2048)
    assert counted.calls == 1
    counted.reply = [(2048, 0)]
    asked.forget()
    assert asked.next_data(0) == (0, 2048)


def test_answer_from_before_is_not_remembered() -> None:
    disk = FakeConnection([2] * 4, (nbd_connection.BASE_ALLOCATION,), random.Random(4))
    asked = extents.Extents(disk)  # type: ignore[arg-type]
    counted = CountedReply([(2048, 2)], meanwhile=asked.forget)
    disk.one_block_status = counted  # type: ignore[assignment, method-assign]
    assert asked.next_data(0) is None
    counted.reply, counted.meanwhile = [(2048, 0)], lambda: None
    assert asked.next_data(0) == (0, 2048)


class CountedReply:
    """One reply to every question, and something that happens while it is on its way."""

    def __init__(self, reply: list[tuple[int, int]], meanwhile: object = lambda: None) -> None:
        self.reply = reply
        self.meanwhile = meanwhile
        self.calls = 0

    def __call__(self, _context: str, _offset: int, _nbytes: int) -> list[tuple[int, int]]:
        self.calls += 1
        reply = list(self.reply)
        self.meanwhile()  # type: ignore[operator]
        return reply


@pytest.mark.parametrize("offset", [0, 512, 65536, 3 * MiB - 512])
@pytest.mark.parametrize("nbytes", [512, 65536, MiB - 512, MiB])
def test_zero_runs(offset: int, nbytes: int) -> None:
    rng = random.Random(offset ^ nbytes)
    for _ in range(20):
        block = bytearray(MiB)
        for _ in range(rng.randrange(5)):
            block[rng.randrange(MiB)] = 1
        runs = export.zero_runs(memoryview(block), offset, nbytes)
        assert runs[0][0] == 0
        assert runs[-1][1] == nbytes
        for (_, stop, is_zero), (start, _, next_is_zero) in itertools.pairwise(runs):
            assert stop == start
            assert is_zero != next_is_zero
        for start, stop, is_zero in runs:
            if is_zero:
                assert not any(block[start:stop])
                assert (offset + start) % 65536 == (offset + stop) % 65536 == 0
