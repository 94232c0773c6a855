# SPDX-License-Identifier: GPL-2.0-or-later
"""The statistics of the gates, against simulated noise: how often they are wrong is what they promise."""

import itertools
import math
import random

import pytest

from blkmig.gates import judge


def test_looks_grow_and_never_repeat():
    assert [judge.look_rounds(look) for look in range(1, 8)] == [5, 8, 12, 18, 27, 41, 62]
    assert [judge.look_rounds(look, 9) for look in range(1, 4)] == [9, 14, 21]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_all_looks_together_spend_at_most_the_error(confidence):
    spent = sum(judge.error_of_look(look, confidence=confidence) for look in range(1, 10_000))
    assert 0.999 * (1 - confidence) < spent <= 1 - confidence


@pytest.mark.parametrize("looks", [1, 2, 5])
def test_the_last_look_spends_what_is_left(looks):
    earlier = sum(judge.error_of_look(look) for look in range(1, looks))
    assert earlier + judge.error_of_look(looks, last=True) == pytest.approx(0.05)


@pytest.mark.parametrize("rounds", range(1, 13))
@pytest.mark.parametrize("error", [0.5, 0.1, 1 / 32, 0.03, 0.001])
def test_rank_is_what_counting_all_outcomes_says(rounds, error):
    """Oracle: each value is below the median or not, all 2^n outcomes are equally likely."""
    outcomes = [sum(outcome) for outcome in itertools.product((0, 1), repeat=rounds)]
    rank = judge.order_rank(rounds, error)
    too_likely = [k for k in range(1, rounds + 1) if sum(below < k for below in outcomes) / len(outcomes) > error]
    assert rank == min(too_likely, default=rounds + 1) - 1


def test_five_rounds_that_agree_decide():
    error = judge.error_of_look(1)
    estimate = judge.estimate([1, 1.1, 0.9, 1, 1], [2, 2.1, 2, 2.2, 1.9], error=error)
    assert estimate.ratio == 2
    assert estimate.low == pytest.approx(1.9)
    assert estimate.verdict(1.5) is judge.Verdict.PASS
    assert estimate.verdict(2.5) is judge.Verdict.FAIL
    assert estimate.verdict(2) is judge.Verdict.UNDECIDED


def test_four_rounds_decide_nothing():
    estimate = judge.estimate([1] * 4, [100] * 4, error=judge.error_of_look(1))
    assert (estimate.low, estimate.high) == (0, math.inf)
    assert estimate.verdict(2) is judge.Verdict.UNDECIDED
    assert "too few rounds" in str(estimate)


def test_the_interval_holds_the_ratio_of_medians():
    """The ratio of medians may lie outside of what the rounds' own ratios say; nobody shall see that."""
    generator = random.Random(4)
    for _ in range(300):
        ours = [generator.lognormvariate(0, 1) for _ in range(9)]
        theirs = [generator.lognormvariate(0, 1) for _ in range(9)]
        estimate = judge.estimate(ours, theirs, error=0.2)
        assert estimate.low <= estimate.ratio <= estimate.high


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1], [1, 2]), ([0.0], [1.0]), ([1.0], [-1.0])])
def test_bad_series_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="a ratio needs"):
        judge.estimate(ours, theirs, error=0.03)


#: One round of noise for two sides; "drift": the whole machine gets slower and faster, both sides feel it.
NOISES = {
    "small": lambda generator, _i: (generator.lognormvariate(0, 0.02), generator.lognormvariate(0, 0.02)),
    "large": lambda generator, _i: (generator.lognormvariate(0, 0.3), generator.lognormvariate(0, 0.3)),
    "drift": lambda generator, i: [(1 + abs(math.sin(i / 5))) * generator.lognormvariate(0, 0.05) for _ in "ab"],
    "spikes": lambda generator, _i: [
        generator.lognormvariate(0, 0.03) * (generator.uniform(2, 9) if generator.random() < 0.15 else 1) for _ in "ab"
    ],
}


def run_to_verdict(generator, noise, *, true_ratio, threshold, max_rounds=62):
    """Look again and again, as a comparison does, and return the first verdict that is one."""
    ours, theirs = [], []
    look, verdict = 0, judge.Verdict.UNDECIDED
    while verdict is judge.Verdict.UNDECIDED and len(ours) < max_rounds:
        look += 1
        while len(ours) < judge.look_rounds(look):
            a, b = noise(generator, len(ours))
            ours.append(a)
            theirs.append(true_ratio * b)
        error = judge.error_of_look(look, last=len(ours) >= max_rounds)
        verdict = judge.estimate(ours, theirs, error=error).verdict(threshold)
    return verdict


@pytest.mark.parametrize("noise", NOISES)
def test_right_at_the_threshold_few_verdicts_are_wrong(noise):
    """The worst place to be: neither pass nor fail is true, and each may be said in 5 % of all runs."""
    generator = random.Random(f"threshold {noise}")
    runs = 1000
    verdicts = [run_to_verdict(generator, NOISES[noise], true_ratio=1.5, threshold=1.5) for _ in range(runs)]
    for wrong in (judge.Verdict.PASS, judge.Verdict.FAIL):
        assert verdicts.count(wrong) <= 0.05 * runs, f"{noise}: {wrong} {verdicts.count(wrong)} times"


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("true_ratio", "wanted"), [(3.0, judge.Verdict.PASS), (0.75, judge.Verdict.FAIL)])
def test_a_clear_case_is_decided_rightly(noise, true_ratio, wanted):
    generator = random.Random(f"clear {noise} {true_ratio}")
    verdicts = [run_to_verdict(generator, NOISES[noise], true_ratio=true_ratio, threshold=1.5) for _ in range(200)]
    assert verdicts.count(wanted) >= 196, f"{noise}: {verdicts.count(wanted)} of 200"
