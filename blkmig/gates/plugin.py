# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest side of the gates: options, the `ratio` fixture, the table at the end, the JSON.

pytest loads it only on request: ``-p blkmig.gates.plugin``, or ``pytest_plugins = ["blkmig.gates.plugin"]`` in the
topmost conftest.py.

What a test has measured travels on its report, as plain data. So pytest-xdist makes no difference::

    worker      ratio ─ measures, alone ─ item.stash ─ makereport: report.blkmig_gates ────┐
    controller  logreport: the last report of a test counts ─ table, JSON          ◄───────┘

If a test is run again, its last run counts. Workers measure one at a time, under a lock that the controller makes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from . import gate, judge, machine, report, stopwatch, unused

_SESSION = pytest.StashKey["Session"]()
_RESULTS = pytest.StashKey[list[dict[str, Any]]]()
_GROUPS = pytest.StashKey[list[tuple[str, str]]]()
_LOCK = "blkmig_gates_lock"


class UndecidedGate(pytest.PytestWarning):
    """The noise was too large, or the time too short, to say whether a gate is kept."""


@dataclasses.dataclass
class Session:
    """What one pytest run, or one of its workers, was asked for, and what its tests have measured, in order."""

    mode: str
    quick: bool
    json: pathlib.Path | None
    max_time: float | None
    root: pathlib.Path
    lock: str = ""
    """The file whose lock a measurement holds; "" where there are no other workers."""
    results: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    runs: dict[str, int] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(
        default_factory=lambda: machine.package_versions(["blkmig", "pytest", "pytest-benchmark", "numpy"])
    )
    failure: str = ""
    groups: unused.Groups = dataclasses.field(default_factory=unused.Groups)

    def take(self, nodeid: str, results: list[dict[str, Any]], versions: Mapping[str, str]) -> None:
        """Take note of what a test has measured; that replaces what it measured in an earlier run."""
        self.runs[nodeid] = self.runs.get(nodeid, 0) + 1
        self.results[nodeid] = [{**result, "runs": self.runs[nodeid]} for result in results]
        self.versions.update(versions)

    def all_results(self) -> list[dict[str, Any]]:
        """Return the results of all tests."""
        return [result for results in self.results.values() for result in results]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other workers from measuring meanwhile."""
        if not self.lock:
            yield
            return
        with open(self.lock, "ab") as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gates", "ratio gates")
    group.addoption(
        "--gates",
        choices=("all", "ci", "off"),
        default="all",
        help="which gates to judge: all, as written (default); ci: for shared machines, only those marked "
        "ci = true, with their margins forgiven, and tests without such a gate are skipped; off: measure only",
    )
    group.addoption("--gates-quick", action="store_true", help="smoke run: one round of everything, nothing is judged")
    group.addoption("--gates-json", metavar="PATH", type=pathlib.Path, help="write all figures and verdicts to PATH")
    group.addoption("--gates-max-time", metavar="SECONDS", type=float, help="cap on the time of each comparison")


def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    worker = getattr(config, "workerinput", None)
    json = options.gates_json and config.invocation_params.dir / options.gates_json
    if json is not None and worker is None:
        try:
            report.check_path(json)
        except OSError as error:
            raise pytest.UsageError(f"--gates-json: cannot write {json}: {error.strerror}") from error
    lock = "" if worker is None else worker.get(_LOCK, "")
    session = Session(options.gates, options.gates_quick, json, options.gates_max_time, config.rootpath, lock)
    config.stash[_SESSION] = session


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker of pytest-xdist the lock under which it measures."""
    session = node.config.stash[_SESSION]
    if not session.lock:
        descriptor, session.lock = tempfile.mkstemp(prefix="blkmig-gates-")
        os.close(descriptor)
    node.workerinput[_LOCK] = session.lock


def pytest_unconfigure(config: pytest.Config) -> None:
    session = config.stash.get(_SESSION, None)
    if session is not None and session.lock and not hasattr(config, "workerinput"):
        pathlib.Path(session.lock).unlink(missing_ok=True)


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
        `at_least`: one number for every rival, or a mapping from "rival" or "rival:metric" to a number or to a table as
        in gates.toml. The gates of this group in gates.toml hold as well, unless `at_least` has one of the same name.
        `group`: the name in the table, in gates.toml and in the JSON; by default the group of the test's
        ``pytest.mark.benchmark``, or else the test's name.
        `skipped`: rivals that cannot run here, name -> reason.
        `max_time`, `precision`, ...: see :class:`blkmig.gates.Limits`; `max_time` is in seconds for all sides together.

        Blocks until enough is known, and returns the :class:`~blkmig.gates.Comparison` with all figures. Fails the test
        when a gate is lost beyond doubt, and warns (:class:`UndecidedGate`) when the samples do not tell. An exception
        of a side reaches the caller. Raises :class:`~blkmig.gates.GateError` for gates that fit no rival.
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
        with self._session.alone():
            comparison.measure()
        node = self._request.node
        node.stash.setdefault(_RESULTS, []).append(report.result_of(comparison, node.nodeid))
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
        file = gate.find_gates(self._request.path.parent, self._session.root)
        if file is not None:
            self._request.node.stash.setdefault(_GROUPS, []).append((str(file), group))
        rivals = list(sides)[1:]
        given = dict(at_least or {}) if isinstance(at_least, Mapping | None) else dict.fromkeys(rivals, at_least)
        written = [] if file is None else gate.read_gates(file).get(group, [])
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Put what the test has measured on its report."""
    made: Any = yield
    if call.when == "call" and "ratio" in getattr(item, "fixturenames", ()):
        results = item.stash.get(_RESULTS, [])
        item.stash[_RESULTS] = []  # it may be run again
        versions, groups = dict(item.config.stash[_SESSION].versions), item.stash.get(_GROUPS, [])
        made.blkmig_gates = {"results": results, "versions": versions, "groups": groups}
    return made  # type: ignore[no-any-return]


class _Collector:
    """Takes the reports of all tests, wherever they ran."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        measured = getattr(report, "blkmig_gates", None)
        if measured is not None:
            self._session.take(report.nodeid, measured["results"], measured["versions"])
            self._session.groups.take(measured["groups"])
        if not report.passed:
            self._session.groups.unfinished.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._session.groups.unfinished.add(report.nodeid)

    def pytest_deselected(self) -> None:
        self._session.groups.is_whole = False


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(_Collector(session.config.stash[_SESSION]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    session = config.stash[_SESSION]
    if results := session.all_results():
        terminalreporter.section("ratio gates" + (" (smoke run: the figures mean nothing)" if session.quick else ""))
        terminalreporter.write_line(report.format_results(results))
    for message in session.groups.messages(config, exitstatus):
        terminalreporter.write_line(message, yellow=True)
    if session.failure:
        terminalreporter.write_line(session.failure, red=True)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the JSON, even if nothing was measured: an earlier run's file would be taken for this one's."""
    gates = session.config.stash[_SESSION]
    if gates.json is None or hasattr(session.config, "workerinput"):
        return
    record = report.document(
        gates.all_results(), root=gates.root, versions=gates.versions, complete=not gates.quick
    )
    try:
        report.write_json(gates.json, record)
    except OSError as error:
        gates.failure = f"--gates-json: cannot write {gates.json}: {error.strerror}"
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
