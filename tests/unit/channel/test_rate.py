# SPDX-License-Identifier: GPL-2.0-or-later
"""The rate limit, on a clock of its own: over any five seconds within 2 % of what was asked."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterator

import pytest

from blkmig import _core, channel, errors
from blkmig.channel import link, rate, streams, uri

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
RATES = [64 * KiB, 65537, 100_000, MiB, 10 * MiB, 128 * MiB, GiB]
BLOCK = _core.BLOCK_SIZE


class World:
    """A sender whose clock moves only when it waits or when its disk takes time; `trace` is (moment, bytes gone)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self.late = 0.0
        self.trace: list[tuple[float, int]] = []
        monkeypatch.setattr(link.Link, "wait", self.wait)
        transport = streams.open_stream(link.Link("null"), uri.FileAddress("/dev/null"), writing=True)
        self.limiter = rate.RateLimiter(lambda: self.now)
        self.f = channel.OutputQEMUFile(transport, limiter=self.limiter)
        self.blk = _core.BlockBuffer()
        self.waits: list[float] = []
        self.on_wait: Callable[[], None] = lambda: None

    def wait(self, seconds: float, fd: int = -1, events: int = 0) -> bool:
        assert 0 < seconds <= 0.1
        self.waits.append(seconds)
        self.on_wait()
        self.note()
        self.now += seconds + self.random.uniform(0, self.late)
        self.note()
        return False

    def note(self) -> None:
        self.trace.append((self.now, self.f.transferred))

    def put_something(self) -> None:
        choice = self.random.randrange(5 if self.limiter.rate < 64 * MiB else 500)
        if choice == 0:
            self.f.put_zero_records(0, self.random.randrange(1, 3000), b"drive0")
        elif choice == 1:
            self.f.put_buffer(bytes(self.random.randrange(100_000)))
        elif choice == 2:
            for _ in range(100):
                self.f.put_be64(0)
        else:
            self.f.put_block(0, _core.FLAG_DEVICE_BLOCK, b"drive0", self.blk)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.put_something()

    def windows(self, seconds: float) -> Iterator[tuple[float, int]]:
        """Yield (length, bytes) of windows of `seconds`, from just before a departure to just before one."""
        moments = [moment for moment, _ in self.trace]
        for index, (start, gone) in enumerate(self.trace):
            stop = bisect.bisect_left(moments, start + seconds, index)
            if stop == len(moments):
                return
            yield moments[stop] - start, self.trace[stop][1] - gone


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(monkeypatch, getattr(request, "param", 1))
    yield made
    made.f.abort()


@pytest.mark.parametrize("late", [0.0, 0.004, 0.03])
@pytest.mark.parametrize("limit", RATES)
def test_any_five_seconds_are_within_two_percent(world: World, limit: int, late: float) -> None:
    world.late = late
    world.f.set_rate_limit(limit)
    world.run(8)
    count = 0
    for seconds, nbytes in world.windows(5.0):
        count += 1
        assert nbytes == pytest.approx(limit * seconds, rel=0.02)
    assert count > 100


@pytest.mark.parametrize("limit", RATES)
def test_idle_time_is_not_caught_up(world: World, limit: int) -> None:
    world.f.set_rate_limit(limit)
    world.run(1)
    for idle in (0.2, 5, 3600):
        world.now += idle
        start, gone = world.now, world.f.position
        while world.now == start:
            world.f.put_buffer(bytes(4096))
        assert world.f.position - gone <= 0.1 * limit + 8192
        world.run(1)


@pytest.mark.parametrize("seed", range(4))
def test_a_changing_limit_is_followed(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    world = World(monkeypatch, seed)
    world.late = 0.002
    allowed = slack = 0.0
    world.f.set_rate_limit(MiB)
    for _ in range(30):
        limit = world.random.choice(RATES[:5])
        seconds = world.random.uniform(0.3, 2)
        world.f.set_rate_limit(limit)
        start, gone = world.now, world.f.transferred
        world.run(seconds)
        allowed += limit * (world.now - start)
        slack += 0.1 * limit + 16 * KiB
        assert world.f.transferred - gone <= limit * (world.now - start) + 0.2 * max(RATES[:5]), f"seed {seed}"
    assert world.f.transferred == pytest.approx(allowed, rel=0.1), f"seed {seed}"
    world.f.abort()


def test_a_raised_limit_ends_a_long_wait(world: World) -> None:
    world.f.set_rate_limit(1)
    world.f.put_buffer(bytes(512))

    def lift(after: list[float] = world.waits) -> None:
        if len(after) == 3:
            world.f.set_rate_limit(0)

    world.on_wait = lift
    world.f.put_be64(0)
    assert len(world.waits) == 3


def test_what_left_without_a_limit_is_never_charged(world: World) -> None:
    world.f.put_buffer(bytes(8 * MiB))
    world.f.set_rate_limit(64 * KiB)
    assert not world.f.rate_limit_exceeded()
    world.f.put_byte(0)
    assert world.waits == []
    world.f.set_rate_limit(0)
    world.f.put_buffer(bytes(8 * MiB))
    world.f.set_rate_limit(64 * KiB)
    world.f.put_byte(0)
    assert world.waits == []


def test_debt_is_seen_and_waited_for(world: World) -> None:
    world.f.set_rate_limit(64 * KiB)
    world.now += 1
    world.f.put_buffer(bytes(32 * KiB))
    assert world.f.rate_limit_exceeded()
    world.f.wait_rate_limit()
    assert not world.f.rate_limit_exceeded()
    assert world.f.transferred == world.f.position, "nothing is held back while the sender waits"
    assert world.now == pytest.approx(1001.5 - rate.BURST_SECONDS)


def test_no_limit_never_waits_nor_asks_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock() -> float:
        raise AssertionError("the clock was asked")

    transport = streams.open_stream(link.Link("null"), uri.FileAddress("/dev/null"), writing=True)
    with channel.OutputQEMUFile(transport, limiter=rate.RateLimiter(clock)) as f:
        f.put_block(0, 1, b"x", _core.BlockBuffer())
        f.put_zero_records(0, 100, b"x")
        f.put_be64(0)
        f.wait_rate_limit()
        assert not f.rate_limit_exceeded()


def test_a_negative_limit_is_refused(world: World) -> None:
    with pytest.raises(errors.ParameterError):
        world.f.set_rate_limit(-1)


@pytest.mark.parametrize("limit", [1, 64 * KiB, 300_000, 200 * MiB, 1 << 50])
def test_slices_are_small_but_not_tiny(limit: int) -> None:
    limiter = rate.RateLimiter()
    limiter.rate = limit
    nbytes = limiter.slice_nbytes()
    assert rate.MIN_SLICE <= nbytes <= MiB
    assert nbytes <= max(limit // 50, rate.MIN_SLICE)
