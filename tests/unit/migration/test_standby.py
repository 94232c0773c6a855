# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a manual switchover: few rounds, and ready at any moment. A clock that only reading and waiting turn."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import _core, errors
from blkmig.migration import standby

MIB = lab.MIB
READ_SECONDS = 0.002


class Clock:
    """Seconds that pass when a block is read, and in waits; then `tick` is called with how many."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tick: Callable[[float], None] = lambda seconds: None

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.tick(seconds)


class Wakeups:
    """The queue of a wait, whose time is the clock's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens: list[None] = []

    def put(self, token: None) -> None:
        self._tokens.append(token)

    def get(self, *, timeout: float) -> None:
        if not self._tokens:
            self._clock.pass_by(timeout)
        if not self._tokens:
            raise queue.Empty
        self._tokens.pop()


class WrittenDisk(blkmig.MemoryBackend):
    """A disk that is read at 500 blocks a second, and of which `rate` blocks are written a second, here and there."""

    def __init__(self, clock: Clock, rate: float) -> None:
        super().__init__(bytearray(b"x" * 64 * MIB), name="d")
        self._clock, self._rate, self._due, self._next = clock, rate, 0.0, 0
        clock.tick = self.write

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        is_zero = super().read_block(blk, offset, nbytes)
        self._clock.pass_by(READ_SECONDS)
        return is_zero

    def write(self, seconds: float) -> None:
        self._due += 0 if self.is_held else self._rate * seconds
        while self._due >= 1:
            self._due -= 1
            self._next = (self._next + 7 * MIB) % self.size
            self.pwrite(b"w", self._next)


def wait_for_switchover(tmp_path: Path, rate: float, seconds: float, **parameters: Any) -> tuple[Any, list[Any]]:
    """Migrate with a switchover that comes after `seconds`; return the statistics and the rounds that were told."""
    clock, told = Clock(), []
    disk = WrittenDisk(clock, rate)
    chosen = blkmig.MigrationParameters(**{"switchover": "manual", "writers_after": "refuse", **parameters})

    def on_progress(event: blkmig.stats.Event) -> None:
        if isinstance(event, blkmig.stats.RoundEnded):
            told.append(event)

    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "SimpleQueue", lambda: Wakeups(clock))
        outgoing = blkmig.migration.OutgoingMigration(
            [disk], receiver.uri, chosen, on_progress=on_progress, clock=clock
        )
    tick = clock.tick

    def tick_and_switch(passed: float) -> None:
        tick(passed)
        if clock.now >= seconds:
            outgoing.switchover()

    clock.tick = tick_and_switch
    with outgoing:
        outgoing.run()
    receiver.result()
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)
    return outgoing.stats, told


@pytest.mark.parametrize("rate", [5, 80])
def test_rounds_are_paced_to_what_is_needed_to_be_ready(tmp_path: Path, rate: int) -> None:
    """E4: one a second where little is written, a quarter of the limit where much is; ready at once all the same."""
    stats, told = wait_for_switchover(tmp_path, rate, 20)
    assert len(stats.rounds) <= 2 + max(20 / standby.ROUND_SECONDS, 20 * rate * standby.SHARE / 150)
    assert stats.blocks <= 64 + 21 * rate
    assert stats.downtime <= 0.3 / standby.SHARE + 0.02 + rate * standby.MAX_SLICE * READ_SECONDS
    assert len(told) <= 2 + 20 / standby.NOTICE_SECONDS, "no line for each of them"


def test_an_idle_disk_keeps_the_receiver_awake(tmp_path: Path) -> None:
    """One real block each time, and no empty sections; as often as the idle time-out asks for."""
    stats, _ = wait_for_switchover(tmp_path, 0, 120)
    assert 64 + 7 <= stats.blocks <= 64 + 9
    (tmp_path / "short").mkdir()
    stats, _ = wait_for_switchover(tmp_path / "short", 0, 12, idle_timeout=4)
    assert 64 + 11 <= stats.blocks <= 64 + 13
    (tmp_path / "none").mkdir()
    stats, _ = wait_for_switchover(tmp_path / "none", 0, 40, idle_timeout=0)
    assert stats.blocks == 64 + 2


@pytest.mark.parametrize("how", ["cancel", "target"])
def test_the_wait_hears_who_ends_it(tmp_path: Path, how: str) -> None:
    """A caller who cancels, and a target that goes away, although nothing is being sent."""
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    outgoing = blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(switchover="manual"))
    found: list[BaseException] = []

    def run() -> None:
        try:
            with outgoing:
                outgoing.run()
        except errors.MigrationError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while len(outgoing.stats.rounds) < 2:
        threading.Event().wait(0.01)
    outgoing.cancel() if how == "cancel" else receiver.migration.cancel()
    thread.join(30)
    assert not thread.is_alive()
    receiver.join()
    assert isinstance(found[0], errors.Cancelled) == (how == "cancel")
