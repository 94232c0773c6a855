# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest side of the gates: options, the `ratio` fixture, the table at the end, the JSON."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from collections.abc import Mapping

import pytest

from . import gate, judge, report, stopwatch

_SESSION = pytest.StashKey["Session"]()


class UndecidedGate(pytest.PytestWarning):
    """The noise was too large, or the time too short, to say whether a gate is kept."""


@dataclasses.dataclass
class Session:
    """All comparisons of one pytest run, in order, with the tests they stand in."""

    mode: str
    quick: bool
    json: pathlib.Path | None
    max_time: float | None
    root: pathlib.Path
    comparisons: list[tuple[str, gate.Comparison]] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(
        default_factory=lambda: report.package_versions(["blkmig", "pytest", "pytest-benchmark", "numpy"])
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gates", "ratio gates")
    group.addoption(
        "--gates",
        choices=("all", "ci", "off"),
        default="all",
        help="which gates to judge: all, as written (default); ci: for shared machines, only those marked "
        "ci = true, less their margins, tests without one are skipped; off: measure only",
    )
    group.addoption("--gates-quick", action="store_true", help="smoke run: one round of everything, nothing is judged")
    group.addoption("--gates-json", metavar="PATH", type=pathlib.Path, help="write all figures and verdicts to PATH")
    group.addoption("--gates-max-time", metavar="SECONDS", type=float, help="cap on the time of each comparison")


def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    root = config.rootpath
    json = options.gates_json and config.invocation_params.dir / options.gates_json
    config.stash[_SESSION] = Session(options.gates, options.gates_quick, json, options.gates_max_time, root)


class Ratio:
    """What the fixture `ratio` gives: call it to measure and judge; see :mod:`blkmig.gates`."""

    def __init__(self, request: pytest.FixtureRequest, session: Session) -> None:
        self._request = request
        self._session = session

    @property
    def quick(self) -> bool:
        """Whether this is a smoke run: shrink the data."""
        return self._session.quick

    @property
    def versions(self) -> dict[str, str]:
        """Versions that go into the JSON; add those of the programs you compare with."""
        return self._session.versions

    def __call__(
        self,
        sides: Mapping[str, stopwatch.Timed],
        *,
        at_least: float | Mapping[str, object] | None = None,
        group: str | None = None,
        skipped: Mapping[str, str] | None = None,
        max_time: float = 10.0,
        min_rounds: int = 5,
        max_rounds: int = 1000,
        precision: float = 0.01,
        sample_time: float = 0.005,
    ) -> gate.Comparison:
        """Time `sides` in turns; the first one, the contender, must be `at_least` so many times faster than the others.

        `sides`: name -> callable, command (list of texts), ``timeit.Timer`` or :class:`~blkmig.gates.Side`.
        `at_least`: one number for every rival, or "rival" / "rival:metric" -> number or the table of a gates.toml; the
        gates of this group in gates.toml hold as well, except where this says otherwise.
        `group`: the name in the table, in gates.toml and in the JSON; without it the group of the test's
        ``pytest.mark.benchmark``, or else the test's name.
        `skipped`: rivals that cannot run here, name -> reason.
        `max_time`, `precision`, ...: see :class:`blkmig.gates.Limits`; `max_time` is in seconds for all sides together.

        Blocks until enough is known. Fails the test when a gate is lost beyond doubt; warns (:class:`UndecidedGate`)
        when the samples do not tell; returns the :class:`~blkmig.gates.Comparison` with all figures. An exception of a
        side goes through. Raises :class:`~blkmig.gates.GateError` for gates that fit no rival.
        """
        __tracebackhide__ = True
        group = group or self._default_group()
        comparison = gate.Comparison(
            group,
            sides,
            gates=self._gates(group, sides, at_least),
            margins=self._session.mode == "ci",
            skipped=skipped,
            limits=self._limits(gate.Limits(max_time, min_rounds, max_rounds, precision, sample_time)),
        )
        comparison.measure()
        self._session.comparisons.append((self._request.node.nodeid, comparison))
        self._report(comparison)
        return comparison

    def _default_group(self) -> str:
        marker = self._request.node.get_closest_marker("benchmark")
        return str((marker and marker.kwargs.get("group")) or self._request.node.name)

    def _limits(self, limits: gate.Limits) -> gate.Limits:
        if self._session.quick:
            return dataclasses.replace(limits, max_time=0.0, min_rounds=1, max_rounds=1, warm_up=False)
        if self._session.max_time is not None:
            return dataclasses.replace(limits, max_time=min(limits.max_time, self._session.max_time))
        return limits

    def _gates(
        self, group: str, sides: Mapping[str, object], at_least: float | Mapping[str, object] | None
    ) -> list[gate.Gate]:
        rivals = list(sides)[1:]
        given = dict.fromkeys(rivals, at_least) if isinstance(at_least, int | float) else dict(at_least or {})
        written = gate.load_gates(self._request.path.parent, self._session.root).get(group, [])
        gates = {item.key: item for item in [*written, *gate.parse_gates(given)]}
        if self._session.mode == "ci":
            gates = {key: item for key, item in gates.items() if item.ci}
            if not gates:
                pytest.skip(f"{group!r} has no gate for shared machines")
        return [] if self._session.mode == "off" or self._session.quick else list(gates.values())

    def _report(self, comparison: gate.Comparison) -> None:
        __tracebackhide__ = True
        if failures := comparison.failures():
            lost = "\n".join(
                f"{comparison.group}: {comparison.contender} against {item.gate.key}: {item.estimate}, "
                f"at least {item.threshold:.3g}x was promised"
                for item in failures
            )
            pytest.fail(f"{lost}\n\n{report.format_comparisons([comparison])}", pytrace=False)
        for item in comparison.judgements():
            if item.verdict is judge.Verdict.UNDECIDED:
                warnings.warn(
                    f"{comparison.group}: {comparison.contender} against {item.gate.key}: {item.estimate} does not "
                    f"tell whether {item.threshold:.3g}x is kept",
                    UndecidedGate,
                    stacklevel=3,
                )


@pytest.fixture
def ratio(request: pytest.FixtureRequest) -> Ratio:
    """Time callables or commands in turns and judge the ratio of their medians; see ``help(blkmig.gates)``."""
    return Ratio(request, request.config.stash[_SESSION])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash[_SESSION]
    if session.comparisons:
        terminalreporter.section("ratio gates" + (" (smoke run: the figures mean nothing)" if session.quick else ""))
        terminalreporter.write_line(report.format_comparisons(item for _, item in session.comparisons))


def pytest_sessionfinish(session: pytest.Session) -> None:
    gates = session.config.stash[_SESSION]
    if gates.json is not None and gates.comparisons:
        complete = not gates.quick
        record = report.document(gates.comparisons, root=gates.root, versions=gates.versions, complete=complete)
        report.write_json(gates.json, record)
