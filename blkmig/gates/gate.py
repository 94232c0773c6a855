# SPDX-License-Identifier: GPL-2.0-or-later
"""Promises about ratios: where they are written down, and the comparison that shows whether they are kept.

A gate says: in this group, the contender is at least `at_least` times better than the rival, by this metric.
It stands in the code (``at_least={"numpy": 4, "numpy:cpu": 3}``) or in the nearest ``gates.toml``::

    ["zero scan of 1 MiB"]                      # the group
    numpy       = { at_least = 4.0, margin = 0.2, ci = true }
    memcmp      = { at_least = 2.0, ci_at_least = 1.1 }     # a goal; shared machines guard what is reached already
    "numpy:cpu" = { at_least = 3.0 }            # another metric than "wall"
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import pathlib
import statistics
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence

from . import judge, stopwatch


class GateError(ValueError):
    """A gate that cannot be understood: an unknown key, group, side or metric."""


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """One promise: the contender is `at_least` so many times better than `rival`, by `metric`.

    `ci`: stable enough to be judged on shared machines. There, `margin` (0.1 = 10 %) is forgiven. If the promise is a
    goal that is not reached yet, shared machines judge by `ci_at_least` instead.
    """

    rival: str
    at_least: float
    metric: str = "wall"
    margin: float = 0.0
    ci: bool = True
    ci_at_least: float | None = None

    @classmethod
    def parse(cls, key: str, value: object) -> Gate:
        """Read ``"rival"`` or ``"rival:metric"`` and a number or a table; raises :class:`GateError`."""
        if not isinstance(key, str):
            raise GateError(f"gate {key!r}: a gate is named by a rival, or by rival:metric")
        rival, _, metric = key.partition(":")
        table: Mapping[str, object] = value if isinstance(value, Mapping) else {"at_least": value, "ci": True}
        margin, ci, floor = table.get("margin", 0.0), table.get("ci", "ci_at_least" in table), None
        if not isinstance(margin, int | float) or not 0 <= margin < 1:
            raise GateError(f"gate {key!r}: margin must be from 0 to below 1, not {margin!r}")
        if not isinstance(ci, bool) or table.keys() - {"at_least", "margin", "ci", "ci_at_least"}:
            raise GateError(
                f"gate {key!r}: only at_least, margin, ci_at_least and ci (true or false) are known: {dict(table)}"
            )
        at_least = _ratio(key, table, "at_least")
        if "ci_at_least" in table:
            floor = _ratio(key, table, "ci_at_least")
            if "margin" in table or not ci or floor > at_least:
                raise GateError(f"gate {key!r}: ci_at_least is at most at_least, and stands without margin and ci")
        return cls(rival, at_least, metric or "wall", float(margin), ci, floor)

    @property
    def key(self) -> str:
        """The name that stands in the file."""
        return self.rival if self.metric == "wall" else f"{self.rival}:{self.metric}"

    def threshold(self, *, shared: bool) -> float:
        """Return the ratio to judge by, on a quiet machine or on a `shared` one."""
        if not shared:
            return self.at_least
        return self.at_least * (1 - self.margin) if self.ci_at_least is None else self.ci_at_least


def _ratio(key: str, table: Mapping[str, object], name: str) -> float:
    value = table.get(name)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        ratio = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        ratio = math.inf
    if not 0 < ratio < math.inf:  # with these, and with NaN, nothing could ever be decided
        raise GateError(f"gate {key!r}: {name} must be a number above 0, not {value!r}")
    return ratio


def parse_gates(table: Mapping[str, object]) -> list[Gate]:
    """Read all gates of one group."""
    return [Gate.parse(key, value) for key, value in table.items()]


def find_gates(start: pathlib.Path, root: pathlib.Path) -> pathlib.Path | None:
    """Return the nearest ``gates.toml``: in the folder `start` or above, up to `root`; None if there is none."""
    for folder in (start, *start.parents):
        path = folder / "gates.toml"
        if path.is_file():
            return path
        if folder == root:
            break
    return None


def read_gates(path: pathlib.Path) -> dict[str, list[Gate]]:
    """Return group -> gates from the file at `path`. Raises :class:`GateError` for one that is damaged, and OSError."""
    try:
        groups = tomllib.loads(path.read_text(encoding="utf-8"))
        return {group: parse_gates(table) for group, table in groups.items()}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, GateError, AttributeError) as error:
        raise GateError(f"{path}: {error}") from error


def load_gates(start: pathlib.Path, root: pathlib.Path) -> dict[str, list[Gate]]:
    """Return what the nearest ``gates.toml`` says, nothing if there is none; see `find_gates` and `read_gates`."""
    path = find_gates(start, root)
    return {} if path is None else read_gates(path)


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """What a measurement says about a gate; `threshold` is the ratio that it is judged by here."""

    gate: Gate
    threshold: float
    estimate: judge.Estimate

    @property
    def verdict(self) -> judge.Verdict:
        """Pass, fail (a decided loss) or undecided."""
        return self.estimate.verdict(self.threshold)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: after `max_time` seconds or `max_rounds` at the latest, but never before `min_rounds`.

    `precision`: no more rounds are run once half the width of a ratio's interval is this small (0.01 = 1 %).
    `sample_time`: the least seconds of a sample; a fast callable is called in a loop for that long.
    `warm_up`: run every side once before the first round. A number that is none, or below 0, is a :class:`GateError`.
    """

    max_time: float = 10.0
    min_rounds: int = 5
    max_rounds: int = 1000
    precision: float = 0.01
    sample_time: float = 0.005
    warm_up: bool = True

    def __post_init__(self) -> None:
        for name in ("max_time", "min_rounds", "max_rounds", "precision", "sample_time"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:  # NaN is no bound
                raise GateError(f"{name} must be a number from 0, not {value!r}")


class Comparison:
    """One contender, the first side, against its rivals, measured in turns.

    `margins`: judge as on shared machines, where the gates' margins are forgiven. `skipped`: rivals that cannot run
    here, each with the reason; their gates are not judged.
    """

    def __init__(
        self,
        group: str,
        sides: Mapping[str, stopwatch.Timed],
        *,
        gates: Iterable[Gate] = (),
        margins: bool = False,
        skipped: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        for name in (group, *sides):
            if not isinstance(name, str):
                raise GateError(f"{name!r}: groups and sides have texts as their names")
        self.group = group
        self.sides = {name: stopwatch.as_side(timed) for name, timed in sides.items()}
        if not self.sides:
            raise GateError(f"{group!r}: there is nothing to measure")
        self.contender, *self.rivals = self.sides
        self.skipped = dict(skipped or {})
        self.margins = margins
        self.limits = limits or Limits()
        self.gates = [gate for gate in gates if gate.rival not in self.skipped]
        self.looks = 0
        self.error = judge.error_of_look(1)  # of the latest look, one-sided
        self.seconds = 0.0
        if unknown := {gate.rival for gate in self.gates} - set(self.rivals):
            raise GateError(f"{group!r}: gates against {sorted(unknown)}, but the rivals are {self.rivals}")

    def measure(self) -> None:
        """Run rounds until every gate is decided or known to `precision`, or time is up; without gates, every ratio."""
        limits, start = self.limits, time.monotonic()
        self.rounds = stopwatch.Rounds(
            self.sides, sample_time=limits.sample_time, seed=self.group, warm_up=limits.warm_up
        )
        while not self._enough(time.monotonic() - start):
            self.rounds.run()
        self.seconds = time.monotonic() - start

    def _enough(self, seconds: float) -> bool:
        """Look at the samples if it is time for a look; return whether they suffice. Only looks spend confidence."""
        count, limits = len(self.rounds), self.limits
        if count == 0:
            return False
        last = count >= limits.max_rounds or (seconds >= limits.max_time and count >= limits.min_rounds)
        if not last and count < judge.look_rounds(self.looks + 1, limits.min_rounds):
            return False
        self.looks += 1
        self.error = judge.error_of_look(self.looks, last=last)
        return last or self._settled()

    def _settled(self) -> bool:
        """Return whether more rounds would tell nothing new. Rivals without a gate count only if no rival has one."""
        if self.gates:
            open_gates = [item for item in self.judgements() if item.verdict is judge.Verdict.UNDECIDED]
            estimates = [item.estimate for item in open_gates]
        else:
            estimates = [self.ratio(rival) for rival in self.rivals]
        return all(estimate.spread <= self.limits.precision for estimate in estimates)

    def figures(self, side: str, metric: str = "wall") -> list[float]:
        """Return what each round cost this side."""
        return self.rounds.series(side, metric)

    def median(self, side: str, metric: str = "wall") -> float:
        """Return the median of :meth:`figures`."""
        return statistics.median(self.figures(side, metric))

    def ratio(self, rival: str, metric: str = "wall", *, of: str | None = None) -> judge.Estimate:
        """Return how many times better than `rival` the contender (or the side `of`) is, with its interval."""
        ours, theirs = self.figures(of or self.contender, metric), self.figures(rival, metric)
        return judge.estimate(ours, theirs, error=self.error)

    def _judge(self, gate: Gate) -> Judgement:
        return Judgement(gate, gate.threshold(shared=self.margins), self.ratio(gate.rival, gate.metric))

    def judgements(self) -> list[Judgement]:
        """Judge every gate by all samples."""
        return [self._judge(gate) for gate in self.gates]

    def failures(self) -> Sequence[Judgement]:
        """Return the decided losses."""
        return [judgement for judgement in self.judgements() if judgement.verdict is judge.Verdict.FAIL]
