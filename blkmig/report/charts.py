# SPDX-License-Identifier: GPL-2.0-or-later
"""The pictures of a migration: what was left and how fast it went over time, the rounds, and the pause, magnified."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .. import stats, units
from . import recorder, svg

MOST_BARS = 60
"""More rounds than that share bars."""

SHORTEST_SHARE = 0.002
"""The part of a migration that is long enough for a rate to mean something."""

FEW_BARS = 8
"""So few bars have a word each."""

NEAR = 4
"""A limit of up to so many pauses is in their picture; one that is farther away would make them a line."""

PHASES = {"bulk": "bulk", "dirty": "dirty", "switchover": "pause", "waiting": "waiting", "storing": "waiting"}
BANDS = (("dirty", "c-rounds", "rounds"), ("pause", "c-pause", "pause"), ("waiting", "c-rest", "target stores"))
"""Phases that have a band behind a chart: how that looks in a legend, and what it is called."""


def _bands(recorded: recorder.Recorder, end: float) -> str:
    """Return the phases as bands behind a chart."""
    found = []
    for phase, group in itertools.groupby(recorded.samples.kept, key=lambda sample: PHASES.get(sample.phase, "")):
        first = next(group).elapsed
        found.append((first, phase))
    ends = [first for first, _ in found[1:]] + [end]
    scale = svg.WIDTH / end
    return "".join(
        svg.rect(first * scale, max((stop - first) * scale, 2.0), css=f"band-{phase}", title=phase)
        for (first, phase), stop in zip(found, ends, strict=True)
        if phase and phase != "bulk"
    )


def _phases(recorded: recorder.Recorder) -> list[tuple[str, str]]:
    """Return what the bands behind a chart mean, of those that are there."""
    seen = {PHASES.get(sample.phase, "") for sample in recorded.samples.kept}
    return [(css, words) for phase, css, words in BANDS if phase in seen]


def _over_time(recorded: recorder.Recorder, inner: str, label: str, top: float, unit: str, end: float) -> str:
    words = ["0", svg.clock(end / 2), svg.clock(end)]
    return svg.chart(_bands(recorded, end) + inner, label, top=svg.size(top) + unit, x=words)


def left(recorded: recorder.Recorder) -> str:
    """Return what was left to be sent, and what of it was dirty; "" if nobody knows."""
    samples = [sample for sample in recorded.samples.kept if sample.left is not None]
    if len(samples) < 2:
        return ""
    end = recorded.elapsed or 1.0
    top = svg.nice(max(max(sample.left or 0, sample.dirty) for sample in samples))
    x, y = svg.WIDTH / end, svg.HEIGHT / top
    inner = svg.path([(each.elapsed * x, (each.left or 0) * y) for each in samples], css="area", is_closed=True)
    inner += svg.path([(each.elapsed * x, each.dirty * y) for each in samples], css="line-dirty")
    return svg.legend([("c-left", "left to be sent"), ("c-dirty", "of it dirty"), *_phases(recorded)]) + _over_time(
        recorded, inner, "bytes that were left, over time", top, "", end
    )


def speed(recorded: recorder.Recorder) -> str:
    """Return how fast it went, and how fast the writers dirtied; "" if there is too little to see."""
    samples = recorded.samples.kept
    if len(samples) < 2:
        return ""
    end = recorded.elapsed or 1.0
    moved = _moved(samples, end * SHORTEST_SHARE)
    top = svg.nice(max([rate for _, rate in moved] + [sample.dirty_rate for sample in samples], default=0.0))
    x, y = svg.WIDTH / end, svg.HEIGHT / top
    inner = svg.path([(elapsed * x, rate * y) for elapsed, rate in moved], css="area", is_closed=True)
    entries = [("c-left", "on the wire")]
    if recorded.direction == "outgoing" and recorded.rounds:
        inner += svg.path([(each.elapsed * x, each.dirty_rate * y) for each in samples], css="line-dirty")
        entries.append(("c-dirty", "dirtied by the writers"))
    legend = svg.legend([*entries, *_phases(recorded)])
    return legend + _over_time(recorded, inner, "bytes per second, over time", top, "/s", end)


def _moved(samples: Sequence[recorder.Sample], shortest: float) -> list[svg.Point]:
    """Return the rates at which bytes have moved, each with when it was that of the time before."""
    found, before = [], samples[0]
    for after in samples[1:]:
        seconds = after.elapsed - before.elapsed
        if seconds > shortest:
            found.append((after.elapsed, max(after.transferred - before.transferred, 0) / seconds))
            before = after
    return found


def rounds(recorded: recorder.Recorder) -> str:
    """Return what each dirty round had to send, and what was dirtied meanwhile; "" without dirty rounds.

    The receiving end knows only what came.
    """
    found = recorded.rounds[1:]
    if not found:
        return ""
    each_bar = -(-len(found) // MOST_BARS)
    bars = [found[first : first + each_bar] for first in range(0, len(found), each_bar)]
    is_known = recorded.direction == "outgoing"
    heights = [_heights(bar, is_known=is_known) for bar in bars]
    top = svg.nice(max(map(max, heights)))
    step, y = svg.WIDTH / max(len(bars), FEW_BARS), svg.HEIGHT / top
    inner = ""
    for index, (bar, (dirty, again)) in enumerate(zip(bars, heights, strict=True)):
        title = f"{name(bar)}: {svg.size(dirty)} {'to send' if is_known else 'came'}"
        title += f", {svg.size(again)} dirtied meanwhile" if is_known else ""
        inner += svg.rect(index * step + step * 0.1, step * 0.5, css="c-left", height=dirty * y, title=title)
        if is_known:
            inner += svg.rect(index * step + step * 0.6, step * 0.3, css="c-dirty", height=again * y, title=title)
    has_few = len(bars) <= FEW_BARS
    words = [*map(number, bars), *[""] * (FEW_BARS - len(bars))] if has_few else [name(bars[0]), name(bars[-1])]
    label = "bytes of each round"
    entries = [("c-left", "to send when it began"), ("c-dirty", "dirtied while it ran")]
    legend = svg.legend(entries if is_known else [("c-left", "came on the wire")])
    return legend + svg.chart(inner, label, top=svg.size(top), x=words, css="x even" if has_few else "x")


def _heights(bar: Sequence[stats.RoundStatistics], *, is_known: bool) -> tuple[float, float]:
    if not is_known:
        return mean([each.transferred for each in bar]), 0.0
    return mean([each.dirty_bytes for each in bar]), mean([each.redirtied_bytes for each in bar])


def mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def name(bar: Sequence[stats.RoundStatistics]) -> str:
    """Return what the rounds of a bar are called."""
    first, last = bar[0].number, bar[-1].number
    return f"round {first}" if first == last else f"rounds {first}-{last}"


def number(bar: Sequence[stats.RoundStatistics]) -> str:
    """Return what a bar of one round is called, where there is little room."""
    return str(bar[0].number)


def pause(recorded: recorder.Recorder) -> str:
    """Return the pause, magnified, with the limit; "" if there was none, or it was not told how long it took."""
    found = recorded.statistics
    if not isinstance(found, stats.OutgoingStatistics) or found.downtime is None or not found.rounds:
        return ""
    downtime, limit = found.downtime, found.downtime_limit
    is_limit_near = limit <= downtime * NEAR
    end = (max(downtime, limit) if is_limit_near else downtime) * 1.1 or 1.0
    last = min(found.rounds[-1].seconds, downtime)
    x = svg.WIDTH / end
    inner = svg.rect(0, max(last * x, 1.0), css="c-last", title=f"last pass: {units.format_duration(last)}")
    rest = downtime - last
    inner += svg.rect(last * x, rest * x, css="c-rest", title=f"the rest: {units.format_duration(rest)}")
    if is_limit_near:
        inner += svg.rect(limit * x - 1, 2.0, css="c-limit", title=f"limit: {units.format_duration(limit)}")
    entries = [
        ("c-last", f"last pass, {units.format_duration(last)}"),
        ("c-rest", f"holding, and the end, {units.format_duration(rest)}"),
        ("c-limit", f"limit, {units.format_duration(limit)}" + ("" if is_limit_near else ", far to the right")),
    ]
    words = "".join(f"<span>{each}</span>" for each in ("0", units.format_duration(end)))
    label = f"the pause of {units.format_duration(downtime)}, and its limit"
    return (
        svg.legend(entries)
        + f'<div class="strip">{svg.picture(inner, label, css="pause")}</div><div class="x">{words}</div>'
    )
