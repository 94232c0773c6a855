# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide from interleaved samples whether one side is as fast as promised; no clock, no pytest, no random numbers.

The ratio of two sides is ``median(rival) / median(contender)``: 2.0 says that the contender needs half as much,
whatever the metric (all metrics are better when smaller). Its interval comes from order statistics of the ratios of the
rounds: both runs of a round stand next to each other in time, so what slows the machine for both cancels out. Nothing
is assumed about the distribution of the noise. The interval is ``(0, inf)`` if there are too few rounds for the wanted
confidence.

Invariant: at most ``1 - confidence`` of all runs give a wrong verdict ("pass" for a loss, "fail" for a win), although
the samples are looked at again and again while their number grows. Every look spends its share of that error
(:func:`error_of_look`), and all shares together never exceed it.
"""

from __future__ import annotations

import dataclasses
import enum
import fractions
import functools
import math
import statistics
from collections.abc import Sequence

#: A verdict is right in at least this share of all runs; what is left is the error that all looks share.
CONFIDENCE = 0.95


class Verdict(enum.Enum):
    """What is known about a promise."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio of medians and the interval around it; `rounds` is how many pairs of samples it comes from."""

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half the width of the interval, relative to the ratio; ``inf`` when there are too few rounds."""
        return (self.high - self.low) / 2 / self.ratio

    def verdict(self, threshold: float) -> Verdict:
        """Judge "the ratio is at least `threshold`". It is decided only if the whole interval is on one side."""
        if self.low >= threshold:
            return Verdict.PASS
        return Verdict.FAIL if self.high < threshold else Verdict.UNDECIDED

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.ratio:.3g}x (too few rounds for an interval)"
        return f"{self.ratio:.3g}x [{self.low:.3g}, {self.high:.3g}]"


def look_rounds(look: int, fewest: int = 0) -> int:
    """Return after how many rounds the samples are looked at for the `look`-th time (from 1): 5, 8, 12, 18, 27 ...

    `fewest`: rounds before the first look, if more than five. Each look comes after half as many rounds again.
    """
    rounds = max(5, fewest)
    for _ in range(look - 1):
        rounds = math.ceil(rounds * 1.5)
    return rounds


def error_of_look(look: int, *, last: bool = False, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided error that the `look`-th look (from 1) may make; the last one spends what is left.

    The first look gets two thirds, so that five rounds that all agree (one chance in 32) decide at 95 %; the others
    share the last third as 1, 1/4, 1/9 ..., whose sum is pi^2 / 6.
    """
    error = 1 - confidence
    if last:
        return error - sum(error_of_look(earlier, confidence=confidence) for earlier in range(1, look))
    if look == 1:
        return error * 2 / 3
    return error / 3 / (look - 1) ** 2 * 6 / math.pi**2


@functools.cache
def order_rank(rounds: int, error: float) -> int:
    """Return the largest k such that the k-th smallest of `rounds` values exceeds the median with at most `error`.

    0 if even the smallest value is more likely than that to exceed it. By symmetry the k-th largest bounds the median
    from above.
    """
    limit = fractions.Fraction(error) * (1 << rounds)
    rank, ways = 0, 0
    while rank < rounds:
        ways += math.comb(rounds, rank)
        if ways > limit:
            break
        rank += 1
    return rank


def estimate(contender: Sequence[float], rival: Sequence[float], *, error: float) -> Estimate:
    """Return the ratio of medians of two series whose i-th values were measured in the same round.

    `error` is one-sided: the true ratio is below `low` (above `high`) in at most this share of all runs. The interval
    is widened, where needed, to hold the ratio of medians itself. Raises ValueError for empty or unequal series or for
    figures that are not positive.
    """
    if not contender or len(contender) != len(rival):
        raise ValueError(f"a ratio needs samples, as many on both sides: {len(contender)} and {len(rival)}")
    if min(contender) <= 0 or min(rival) <= 0:
        raise ValueError("a ratio needs figures above zero: time more work per sample, or use another metric")
    ratio = statistics.median(rival) / statistics.median(contender)
    paired = sorted(theirs / ours for ours, theirs in zip(contender, rival, strict=True))
    rank = order_rank(len(paired), error)
    if rank == 0:
        return Estimate(ratio, 0.0, math.inf, len(paired))
    return Estimate(ratio, min(ratio, paired[rank - 1]), max(ratio, paired[-rank]), len(paired))
