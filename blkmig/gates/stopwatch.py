# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the sides of a comparison in turns, A B A B, and note what each run cost.

A round runs every side once, in an order that changes from round to round, so that no side is always the first after
a pause or always the one behind the heaviest neighbour. Only the run is timed: `setup` and `check` stand outside.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import numbers
import os
import random
import resource
import subprocess
import time
import timeit
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import TypeAlias

#: What one run cost, by metric: "wall" and "cpu" in seconds, and whatever the run returned.
Figures: TypeAlias = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    `run`: a callable without arguments, a command as a list of texts, or a ``timeit.Timer``, whose statement is run in
    a loop of its own (for calls of a few nanoseconds). If a callable returns a mapping, its entries become figures of
    this run, and replace those measured here. So a run may report figures of its own, such as "downtime" or "rss".
    `setup`, `check`: called before and after each run, not timed. With either of them, a sample is exactly one run.
    A callable fails by raising, a command by an exit code that is not 0. One that returns a coroutine or a generator
    has done nothing yet, which is a TypeError: run it to its end, as ``lambda: asyncio.run(work())``.
    """

    run: Callable[[], object] | Sequence[str] | timeit.Timer
    setup: Callable[[], object] | None = None
    check: Callable[[], object] | None = None

    @property
    def repeatable(self) -> bool:
        """Whether one sample may be a loop of many runs."""
        runs_here = callable(self.run) or isinstance(self.run, timeit.Timer)
        return runs_here and self.setup is None and self.check is None


#: What may be given as a side where only `run` matters.
Timed: TypeAlias = Callable[[], object] | Sequence[str] | timeit.Timer | Side


def as_side(timed: Timed) -> Side:
    """Return `timed` as a :class:`Side`. Raises TypeError for a text: a command is a list, a statement a Timer."""
    if isinstance(timed, Side):
        return timed
    if isinstance(timed, str):
        raise TypeError(f"{timed!r}: give a command as a list of texts, a Python statement as a timeit.Timer")
    return Side(timed)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have been waited for."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_command(command: Sequence[str]) -> Figures:
    """Run `command` and return its wall and CPU seconds; raises CalledProcessError.

    It does not return the peak RSS, because the kernel starts a child's peak at the size of the process that forked it.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime}


def _ended(result: object) -> object:
    """Return what a call has returned; raise TypeError if its work has only been made ready, and would not be timed."""
    if isinstance(result, Awaitable | Generator | AsyncGenerator):
        if isinstance(result, Coroutine):
            result.close()  # else Python warns that nobody awaited it
        raise TypeError(f"{result!r} has not run: a side, its setup and its check do their work before they return")
    return result


def _run_callable(run: Callable[[], object], loops: int) -> Figures:
    result: object = None
    cpu_start = _cpu_seconds()
    start = time.perf_counter()
    for _ in itertools.repeat(None, loops):
        result = run()
    wall = time.perf_counter() - start
    figures = {"wall": wall / loops, "cpu": (_cpu_seconds() - cpu_start) / loops}
    result = _ended(result)
    if isinstance(result, Mapping):
        figures.update(_checked(result))
    return figures


def _checked(given: Mapping[object, object]) -> Figures:
    """Return the figures that a run reports, as plain numbers; raise ValueError for what is no figure."""
    figures = {}
    for metric, value in given.items():
        if not isinstance(metric, str):
            raise ValueError(f"a metric must have a text as its name, not {metric!r}")
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"metric {metric!r} must be a number, not {value!r}")
        figures[metric] = float(value)
        if not 0 <= figures[metric] < math.inf or (metric == "wall" and not figures[metric]):
            raise ValueError(f"metric {metric!r} must be finite and not below 0 (wall: above 0), not {value!r}")
    return figures


def _run_timer(timer: timeit.Timer, loops: int) -> Figures:
    cpu_start = _cpu_seconds()
    wall = timer.timeit(loops)
    return {"wall": wall / loops, "cpu": (_cpu_seconds() - cpu_start) / loops}


def sample(side: Side, loops: int = 1) -> Figures:
    """Run `side` `loops` times, without garbage collection, and return the figures of one run, their mean."""
    if side.setup:
        _ended(side.setup())
    collecting = gc.isenabled()
    gc.disable()
    try:
        if isinstance(side.run, timeit.Timer):
            figures = _run_timer(side.run, loops)
        elif callable(side.run):
            figures = _run_callable(side.run, loops)
        else:
            figures = run_command(side.run)
    finally:
        if collecting:
            gc.enable()
    if side.check:
        _ended(side.check())
    return figures


def calibrate(side: Side, sample_time: float) -> int:
    """Return how many runs make a sample of at least `sample_time` seconds. These runs warm the side up, too."""
    loops = 1
    while True:
        wall = sample(side, loops)["wall"] * loops
        if not side.repeatable or wall >= sample_time:
            return loops
        loops = max(loops * 2, min(loops * 100, int(loops * sample_time / max(wall, 1e-9)) + 1))


class Rounds:
    """The samples of several sides, round by round; `figures[side][i]` belongs to round i, on every side."""

    def __init__(self, sides: Mapping[str, Side], *, sample_time: float, seed: str, warm_up: bool = True) -> None:
        """Warm every side up, and find out how many runs make a sample. Without `warm_up` a sample is one run."""
        self.sides = dict(sides)
        self.figures: dict[str, list[Figures]] = {name: [] for name in sides}
        self._order = random.Random(seed)
        self.loops = {name: calibrate(side, sample_time) if warm_up else 1 for name, side in self.sides.items()}

    def __len__(self) -> int:
        return min(len(figures) for figures in self.figures.values())

    def run(self) -> None:
        """Run every side once more. If one fails, nothing of the round is kept."""
        order = self._order.sample(sorted(self.sides), len(self.sides))
        results = {name: sample(self.sides[name], self.loops[name]) for name in order}
        for name, figures in results.items():
            self.figures[name].append(figures)

    def series(self, side: str, metric: str) -> list[float]:
        """Return the figures of one metric; KeyError says which metrics the side has."""
        try:
            return [figures[metric] for figures in self.figures[side]]
        except KeyError:
            raise KeyError(f"{side!r} has no metric {metric!r}, only {sorted(self.figures[side][0])}") from None
