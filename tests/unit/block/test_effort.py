# SPDX-License-Identifier: GPL-2.0-or-later
"""How much is compressed follows from what the link and the workers do; a clock that stands in for both says that."""

from __future__ import annotations

import random

import pytest

from blkmig.block import effort

MIB = 1 << 20
MB = 1_000_000


class Line:
    """A link of `link` bytes a second, and one worker of `worker` bytes a second whose frames have the half."""

    jitter = 0.0
    """The part of a block's time on the link that comes and goes at random."""

    def __init__(self, link: float, worker: float, *, always: bool = False, receiver: float = 1e12) -> None:
        self._rng = random.Random(int(link))
        self.now = 0.0
        self.effort = effort.Effort(always=always, workers=1, clock=lambda: self.now)
        self._link, self.worker, self.receiver = link, worker, receiver
        self.compressed = 0
        self._free_at = 0.0  # when the worker has done all it was given
        self.order: list[tuple[bool, float]] = []
        self.hurries = False

    def run(self, blocks: int) -> float:
        """Send so many blocks, 15 of them ahead of the link; return the bytes of the disk that went in a second."""
        began = self.now
        for _ in range(blocks):
            while len(self.order) < (15 if self.effort.is_worth_it() else 1):
                self._take()
            is_frame, ready = self.order.pop(0)
            waited = max(0.0, ready - self.now)
            self.now += waited
            wire = MIB // 2 if is_frame else MIB
            self.effort.sends(MIB, wire, waited)
            seconds = wire / self._link * (1 + self._rng.uniform(-self.jitter, self.jitter))
            self.now += max(seconds, MIB / self.receiver if is_frame else 0.0)
            self.effort.sent()
        return blocks * MIB / (self.now - began)

    def _take(self) -> None:
        queued = sum(MIB for is_frame, ready in self.order if is_frame and ready > self.now)
        ahead = sum(MIB // 2 if is_frame else MIB for is_frame, _ in self.order)
        wants = self.effort.wants(MIB, queued=queued, ahead=ahead, hurries=self.hurries)
        if wants:
            seconds = MIB / self.worker
            self._free_at = max(self._free_at, self.now) + seconds
            self.effort.worked(MIB, MIB // 2, seconds)
            self.compressed += 1
        self.order.append((wants, self._free_at if wants else self.now))


@pytest.mark.parametrize(("link", "least"), [(10 * MB, 1.9), (112 * MB, 1.9), (200 * MB, 1.8), (400 * MB, 1.2)])
def test_a_slow_link_carries_more(link: float, least: float) -> None:
    assert Line(link, 450 * MB).run(3000) > least * link


@pytest.mark.parametrize("link", [5 * MB, 12 * MB, 13 * MB, 60 * MB, 112 * MB])
def test_a_link_that_comes_and_goes(link: float) -> None:
    """A window of a few blocks tells nothing: a trial must not be won by chance."""
    line = Line(link, 450 * MB)
    line.jitter = 0.9
    assert line.run(4000) > 1.85 * link


@pytest.mark.parametrize("link", [112 * MB, 450 * MB, 1100 * MB, 3000 * MB])
@pytest.mark.parametrize("worker", [10 * MB, 100 * MB, 450 * MB])
def test_no_link_carries_less(link: float, worker: float) -> None:
    line = Line(link, worker)
    line.run(500)  # nothing is known at first
    assert line.run(3000) > 0.97 * link


def test_a_fast_link_is_left_alone() -> None:
    """Workers that can do little of what it carries are not asked, but for a look now and then."""
    line = Line(1100 * MB, 450 * MB)
    line.run(1000)
    assert not line.effort.is_worth_it()
    before, since = line.compressed, line.now
    line.run(10_000)
    assert line.compressed - before <= (line.now - since) / effort.LOOK_SECONDS + 1


def test_a_receiver_that_is_slow_to_decompress() -> None:
    """It looks like a slow link, and the more is compressed, the slower it gets."""
    line = Line(112 * MB, 450 * MB, receiver=40 * MB)
    line.run(500)
    assert line.run(8000) > 0.97 * 112 * MB
    line.receiver = 1e12
    line.run(5000)
    assert line.run(8000) > 1.9 * 112 * MB, "it has got faster, which is noticed"


def test_a_worker_that_gets_faster_is_noticed() -> None:
    line = Line(400 * MB, 20 * MB)
    line.run(2000)
    assert not line.effort.is_worth_it()
    line.worker = 2000 * MB
    line.run(20_000)
    assert line.effort.is_worth_it()


def test_idle_workers_compress_better() -> None:
    line = Line(10 * MB, 450 * MB)
    assert line.effort.level == 1
    line.run(500)
    assert line.effort.level == effort.LEVELS[-1]


def test_what_was_asked_for_by_name_is_done_whatever_it_takes() -> None:
    line = Line(3000 * MB, 100 * MB, always=True)
    line.run(200)
    assert line.compressed >= 200
    line.hurries = True
    before = line.compressed
    line.run(200)
    assert line.compressed - before < 30, "but not while writers are held"


def test_a_pause_between_two_rounds_is_not_the_links() -> None:
    line = Line(112 * MB, 450 * MB)
    line.run(500)
    rate = line.effort.link_rate
    line.order.clear()
    line.now += 60
    line.run(500)
    assert line.effort.link_rate == pytest.approx(rate, rel=0.05)
