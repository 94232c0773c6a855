# SPDX-License-Identifier: GPL-2.0-or-later
"""What a barrier brings to stable storage: each disk of which a record came since the last ACK, and no other."""

from __future__ import annotations

import queue
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from blkmig import _core, block, stats
from blkmig.files import memory
from blkmig.migration import acknowledging

BLOCK = _core.BLOCK_SIZE
NBLOCKS = 4
LATE = 30.0


class Target(memory.MemoryBackend):
    """A disk of a stream that knows which of its records are on stable storage."""

    def __init__(self, name: str) -> None:
        super().__init__(bytearray(NBLOCKS * BLOCK), name=name)
        self.device = block.BlkLoadDevice(self, stats.DiskStatistics(name), size=NBLOCKS * BLOCK)
        self.device.compare(NBLOCKS * BLOCK)
        self.came = self.stable = self.flushes = 0
        self.is_claimed = False
        """A record came that no lost link has taken back, and of which no ACK has said that it is stored."""

    def flush_drained(self) -> None:
        self.stable = self.came
        self.flushes += 1
        super().flush_drained()

    def take(self, record: str) -> None:
        getattr(self, record)()
        self.came += 1
        self.is_claimed = True

    def zeros(self) -> None:
        """Nothing is written: the disk reads as zeros there. Whoever wrote them need not have flushed them."""
        self.device.load_zero_run(0, 1, 0)

    def same(self) -> None:
        """Nothing is written: an old copy holds it, of which nobody knows whether it was flushed."""
        self.device.read_to_compare(_core.BlockBuffer("own"), BLOCK, BLOCK, vouches=True)
        self.device.load_same([(BLOCK, BLOCK)], 0)

    def pack(self) -> None:
        """What `BlkLoadDevice.load_pack` counts when it has written one."""
        self.device.coverage.add_pack([(2 * BLOCK, 4096)], number=0)


RECORDS = ("zeros", "same", "pack")


class Session:
    """The barriers of a stream that has so many disks."""

    def __init__(self, ndisks: int) -> None:
        self.targets = [Target(f"d{number}") for number in range(ndisks)]
        self.said: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.number = 0
        self.acknowledger = acknowledging.Acknowledger(
            [target.device for target in self.targets], say=self.said.put, beat=_nothing, wake=_nothing
        )

    def barrier(self) -> None:
        self.number += 1
        self.acknowledger.barrier(self.number, 0, 0, 0)

    def is_acknowledged(self) -> None:
        """Wait for the ACK, past one that a lost link has not carried, and check what it says."""
        while self.said.get(timeout=LATE) != self.number:
            pass
        for target in self.targets:
            assert not target.is_claimed or target.stable == target.came
            target.is_claimed = False

    def lose_the_link(self) -> None:
        """Go back to the last ACK, as an `IncomingSession` does, and wait for a flush that nobody asks about now."""
        mark = self.acknowledger.rewind()
        self.acknowledger.settle()
        for device, counts, same_bytes in mark.counts:
            device.link_lost(counts)
            device.statistics.same_bytes = same_bytes
        self.number = mark.number
        for target in self.targets:
            target.is_claimed = False

    def close(self) -> None:
        self.acknowledger.close()
        for target in self.targets:
            target.close()


def _nothing(*_: object) -> None: ...


@pytest.fixture
def begin() -> Iterator[Callable[[int], Session]]:
    sessions: list[Session] = []

    def begin(ndisks: int) -> Session:
        sessions.append(Session(ndisks))
        return sessions[-1]

    yield begin
    for each in sessions:
        each.close()


def flushes(targets: Sequence[Target]) -> list[int]:
    return [target.flushes for target in targets]


@pytest.mark.parametrize("record", RECORDS)
def test_a_barrier_flushes_the_disk_that_had_a_record_and_no_other(
    begin: Callable[[int], Session], record: str
) -> None:
    session = begin(3)
    for number in range(3):
        session.targets[number].take(record)
        session.barrier()
        session.is_acknowledged()
    assert flushes(session.targets) == [1, 1, 1]


def test_a_disk_is_flushed_again_for_what_a_lost_link_has_taken_back(begin: Callable[[int], Session]) -> None:
    session = begin(2)
    session.targets[0].take("pack")
    session.lose_the_link()
    session.targets[0].take("same")  # what the lost pack has written, and nobody has flushed
    session.barrier()
    session.is_acknowledged()
    assert flushes(session.targets) == [1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_acknowledged_is_on_stable_storage(begin: Callable[[int], Session], seed: int) -> None:
    rng, session = random.Random(seed), begin(4)
    for _ in range(100):
        step = rng.random()
        if step < 0.7:
            rng.choice(session.targets).take(rng.choice(RECORDS))
        elif step < 0.8:
            session.lose_the_link()
        else:
            before, claimed = flushes(session.targets), [target.is_claimed for target in session.targets]
            session.barrier()
            if rng.random() < 0.2:
                session.lose_the_link()
                continue
            session.is_acknowledged()
            found = [now > then for now, then in zip(flushes(session.targets), before, strict=True)]
            assert found == claimed, f"seed {seed}"
