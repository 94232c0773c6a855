# SPDX-License-Identifier: GPL-2.0-or-later
"""Running sides in turns, reading gates, and the records that come out; figures are given, never timed."""

import itertools
import pathlib
import subprocess
import sys
import timeit

import pytest

from blkmig import gates
from blkmig.gates import gate, report, stopwatch


def constant(wall, **figures):
    return lambda: {"wall": wall, **figures}


def noisy():
    walls = itertools.cycle([1.0, 2.0, 1.0, 3.0, 0.5])
    return lambda: {"wall": next(walls)}


def measured(sides, **options):
    comparison = gates.Comparison("group", sides, **options)
    comparison.measure()
    return comparison


class TestStopwatch:
    def test_every_round_runs_every_side_once_in_changing_order(self):
        log = []
        sides = {name: gates.Side(lambda name=name: log.append(name), check=lambda: None) for name in "abc"}
        rounds = stopwatch.Rounds(sides, sample_time=0.01, seed="x")
        del log[:]
        for _ in range(30):
            rounds.run()
        turns = ["".join(log[i : i + 3]) for i in range(0, 90, 3)]
        assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
        assert len(set(turns)) == 6

    def test_the_order_is_the_same_for_the_same_seed(self):
        def order(seed):
            log = []
            sides = {name: gates.Side(lambda name=name: log.append(name), check=lambda: None) for name in "abc"}
            rounds = stopwatch.Rounds(sides, sample_time=0, seed=seed)
            for _ in range(20):
                rounds.run()
            return log

        assert order("one") == order("one") != order("two")

    def test_setup_and_check_stand_around_each_run(self):
        log = []
        side = gates.Side(lambda: log.append("run"), lambda: log.append("setup"), lambda: log.append("check"))
        rounds = stopwatch.Rounds({"a": side}, sample_time=10, seed="")
        rounds.run()
        assert log == ["setup", "run", "check"] * 2

    def test_fast_runs_are_looped(self):
        calls = []
        rounds = stopwatch.Rounds({"a": gates.Side(lambda: calls.append(1))}, sample_time=0.001, seed="")
        before = len(calls)
        rounds.run()
        assert len(calls) - before == rounds.loops["a"] > 10

    def test_timer(self):
        rounds = stopwatch.Rounds({"a": gates.Side(timeit.Timer("pass"))}, sample_time=0.001, seed="")
        rounds.run()
        assert 0 < rounds.series("a", "wall")[0] < 1e-3
        assert rounds.loops["a"] > 100

    def test_command(self):
        busy = "import time; end = time.process_time() + 0.05\nwhile time.process_time() < end: 0"
        figures = stopwatch.sample(gates.Side([sys.executable, "-Sc", busy]))
        assert figures["wall"] > 0.04
        assert 0.04 < figures["cpu"] < 10

    def test_command_that_fails(self):
        with pytest.raises(subprocess.CalledProcessError):
            stopwatch.sample(gates.Side(["false"]))

    def test_a_text_is_no_side(self):
        with pytest.raises(TypeError, match="list of texts"):
            stopwatch.as_side("ls -l")

    def test_a_round_that_fails_leaves_no_trace(self):
        good, bad = [], []

        def run_bad():
            bad.append(1)
            if len(bad) == 3:
                raise OSError("gone")

        sides = {"a": gates.Side(lambda: good.append(1), print), "b": gates.Side(run_bad, print)}
        rounds = stopwatch.Rounds(sides, sample_time=0, seed="")
        rounds.run()
        with pytest.raises(OSError, match="gone"):
            rounds.run()
        assert [len(figures) for figures in rounds.figures.values()] == [1, 1]

    def test_the_garbage_collector_stands_still(self):
        import gc

        seen = []
        stopwatch.sample(gates.Side(lambda: seen.append(gc.isenabled())))
        assert seen == [False]
        assert gc.isenabled()

    def test_unknown_metric(self):
        comparison = measured({"a": constant(1), "b": constant(2)})
        with pytest.raises(KeyError, match="rss"):
            comparison.ratio("b", "rss")


    @pytest.mark.parametrize("kind", ["run", "setup", "check"])
    @pytest.mark.parametrize("result", ["coroutine", "generator", "async_generator"])
    def test_what_was_only_made_ready_is_not_timed(self, kind, result):
        async def coroutine():
            raise AssertionError("nobody awaits it")

        def generator():
            yield

        async def async_generator():
            yield

        side = gates.Side(**{"run": lambda: None, kind: locals()[result]})
        with pytest.raises(TypeError, match=f"<{result} object .* has not run"):
            stopwatch.sample(side)


class TestGate:
    def test_numbers_and_tables(self):
        assert gates.Gate.parse("numpy", 4) == gates.Gate("numpy", 4.0)
        table = {"at_least": 1.5, "margin": 0.1, "ci": True}
        assert gates.Gate.parse("numpy:cpu", table) == gates.Gate("numpy", 1.5, "cpu", 0.1, True)
        assert not gates.Gate.parse("numpy", {"at_least": 2}).ci
        assert gates.Gate.parse("numpy:cpu", table).key == "numpy:cpu"

    @pytest.mark.parametrize(
        "value",
        [
            *("4", None, True, 0, -1, {}),
            *({"at_least": 1, "margin": 1}, {"at_least": 1, "at_most": 2}, {"at_least": 1, "ci": 1}),
            *({"at_least": 1, "ci_at_least": 2}, {"at_least": 1, "ci_at_least": 0}, {"ci_at_least": 1}),
            *({"at_least": 2, "ci_at_least": 1, "margin": 0.1}, {"at_least": 2, "ci_at_least": 1, "ci": False}),
        ],
    )
    def test_nonsense_is_refused(self, value):
        with pytest.raises(gates.GateError):
            gates.Gate.parse("numpy", value)

    def test_the_nearest_file_holds(self, tmp_path):
        below = tmp_path / "a" / "b"
        below.mkdir(parents=True)
        assert gate.load_gates(below, tmp_path) == {}
        (tmp_path / "gates.toml").write_text("[far]\nx = 1\n")
        assert list(gate.load_gates(below, tmp_path)) == ["far"]
        assert gate.load_gates(below, tmp_path / "a") == {}
        (tmp_path / "a" / "gates.toml").write_text('["the group"]\n"x:cpu" = { at_least = 2, ci = true }\n')
        assert gate.load_gates(below, tmp_path) == {"the group": [gates.Gate("x", 2.0, "cpu")]}

    @pytest.mark.parametrize("text", ["[a]\nx = 'y'", "[a", "a = 1"])
    def test_errors_name_the_file(self, tmp_path, text):
        (tmp_path / "gates.toml").write_text(text)
        with pytest.raises(gates.GateError, match=r"gates\.toml"):
            gate.load_gates(tmp_path, tmp_path)


class TestComparison:
    def test_verdicts(self):
        sides = {"ours": constant(1), "slow": constant(3), "fast": constant(0.5)}
        comparison = measured(sides, gates=[gates.Gate("slow", 2), gates.Gate("fast", 2)])
        assert [item.verdict for item in comparison.judgements()] == [gates.Verdict.PASS, gates.Verdict.FAIL]
        assert [item.gate.rival for item in comparison.failures()] == ["fast"]
        assert len(comparison.rounds) == 5

    def test_margin_is_forgiven_only_where_asked_for(self):
        sides = {"ours": constant(1), "rival": constant(1.9)}
        promise = [gates.Gate("rival", 2, margin=0.1)]
        assert measured(sides, gates=promise).failures()
        assert not measured(sides, gates=promise, margins=True).failures()

    def test_a_goal_has_a_floor_of_its_own_on_shared_machines(self):
        promise = [gates.Gate.parse("rival", {"at_least": 4, "ci_at_least": 2})]
        above, below = ({"ours": constant(1), "rival": constant(wall)} for wall in (2.1, 1.9))
        assert promise[0].ci
        assert measured(above, gates=promise).failures()
        assert not measured(above, gates=promise, margins=True).failures()
        assert measured(below, gates=promise, margins=True).failures()

    def test_other_metrics(self):
        sides = {"ours": constant(1, rss=10), "rival": constant(1, rss=40)}
        comparison = measured(sides, gates=[gates.Gate("rival", 3, "rss")])
        assert comparison.judgements()[0].verdict is gates.Verdict.PASS
        assert comparison.ratio("rival", "rss").ratio == 4
        assert comparison.ratio("ours", "rss", of="rival").ratio == 0.25

    def test_noise_leaves_it_undecided_and_time_is_kept(self):
        sides = {"ours": noisy(), "rival": constant(1.5)}
        limits = gates.Limits(max_rounds=40)
        comparison = measured(sides, gates=[gates.Gate("rival", 1.5)], limits=limits)
        assert comparison.judgements()[0].verdict is gates.Verdict.UNDECIDED
        assert len(comparison.rounds) == 40
        assert not comparison.failures()

    @pytest.mark.parametrize(("fewest", "looks"), [(1, 5), (9, 4)])
    def test_looks_are_apart_from_the_fewest_rounds_on(self, fewest, looks):
        """Each look spends confidence: those that would have come before the fewest rounds are not made up for."""
        sides = {"ours": noisy(), "rival": constant(1.5)}
        limits = gates.Limits(min_rounds=fewest, max_rounds=26)
        assert measured(sides, gates=[gates.Gate("rival", 1.5)], limits=limits).looks == looks

    def test_a_rival_without_a_gate_holds_nobody_up(self):
        sides = {"ours": constant(1), "rival": constant(3), "other": noisy()}
        comparison = measured(sides, gates=[gates.Gate("rival", 2)], limits=gates.Limits(max_rounds=40))
        assert len(comparison.rounds) == 5
        assert len(measured(sides, limits=gates.Limits(max_rounds=40)).rounds) == 40

    def test_without_gates_it_stops_when_the_ratio_is_known(self):
        assert len(measured({"ours": constant(1), "rival": constant(2)}).rounds) == 5
        assert len(measured({"alone": constant(1)}).rounds) == 5

    def test_time_is_up_after_the_fewest_rounds(self):
        sides = {"ours": constant(1), "rival": constant(9)}
        limits = gates.Limits(max_time=0, min_rounds=3)
        comparison = measured(sides, gates=[gates.Gate("rival", 2)], limits=limits)
        assert len(comparison.rounds) == 3
        assert comparison.judgements()[0].verdict is gates.Verdict.UNDECIDED

    def test_gates_must_fit(self):
        with pytest.raises(gates.GateError, match="numpi"):
            gates.Comparison("g", {"a": print, "numpy": print}, gates=[gates.Gate("numpi", 2)])
        with pytest.raises(gates.GateError, match="nothing to measure"):
            gates.Comparison("g", {})

    def test_gates_of_skipped_rivals_rest(self):
        comparison = measured(
            {"ours": constant(1)}, gates=[gates.Gate("peer", 2)], skipped={"peer": "peer is not installed"}
        )
        assert comparison.judgements() == []
        assert "skipped: peer is not installed" in report.format_comparisons([comparison])


    @pytest.mark.parametrize("name", ["max_time", "min_rounds", "max_rounds", "precision", "sample_time"])
    @pytest.mark.parametrize("value", [float("nan"), -1, "1", True, None])
    def test_limits_are_numbers(self, name, value):
        with pytest.raises(gates.GateError, match=f"{name} must be a number from 0, not {value!r}"):
            gates.Limits(**{name: value})


class TestReport:
    def test_a_table_has_a_line_for_each_row(self):
        table = report.format_table(["side"], [["a\nb"], ["\x1b[31mred"], ["ü"]])
        assert table.splitlines()[2:] == ["a\\nb", "\\x1b[31mred", "ü"]

    @pytest.mark.parametrize(
        ("value", "metric", "text"),
        [
            (1.5, "wall", "1.5 s"),
            (0.0025, "cpu", "2.5 ms"),
            (3e-8, "wall", "30 ns"),
            (1e-10, "wall", "0.1 ns"),
            (3 << 20, "rss", "3.0 MiB"),
            (12.0, "rounds", "12"),
        ],
    )
    def test_figures(self, value, metric, text):
        assert report.format_figure(value, metric) == text

    def test_table(self):
        sides = {"ours": constant(1, rss=1 << 20), "rival": constant(2, rss=1 << 21), "other": constant(4)}
        comparison = measured(sides, gates=[gates.Gate("rival", 3), gates.Gate("rival", 1.5, "rss")])
        lines = [line.split() for line in report.format_comparisons([comparison]).splitlines()]
        assert lines[4] == ["rival", "2", "s", "0.0%", "2x", "2", "..", "2", ">=", "3", "fail"]
        assert lines[5] == ["other", "4", "s", "0.0%", "4x", "4", "..", "4"]
        assert lines[7] == ["rival", "(rss)", "2.0", "MiB", "0.0%", "2x", "2", "..", "2", ">=", "1.5", "pass"]
        assert len(lines) == 8

    def test_json(self, tmp_path):
        import json

        comparison = measured({"ours": constant(1), "rival": constant(2)}, gates=[gates.Gate("rival", 1.5)])
        results = [report.result_of(comparison, "test.py::t")]
        record = report.document(results, root=tmp_path, versions={"x": "1"}, complete=True)
        report.write_json(tmp_path / "deep" / "gates.json", record)
        read = json.loads((tmp_path / "deep" / "gates.json").read_text())
        assert [item["fullname"] for item in read["benchmarks"]] == ["test.py::t[ours]", "test.py::t[rival]"]
        assert read["benchmarks"][1]["stats"]["median"] == 2
        assert read["comparisons"][0]["gates"][0]["verdict"] == "pass"
        assert read["comparisons"][0]["figures"]["ours"][0]["wall"] == 1
        assert read["commit_info"]["id"] == ""
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "gates.json"]

    def test_pytest_benchmark_reads_the_json(self, tmp_path):
        pytest.importorskip("pytest_benchmark")
        comparison = measured({"ours": constant(1), "rival": constant(2)})
        results = [report.result_of(comparison, "test.py::t")]
        record = report.document(results, root=pathlib.Path(), versions={}, complete=True)
        report.write_json(tmp_path / "gates.json", record)
        code = "from pytest_benchmark.cli import main; main()"
        command = [sys.executable, "-c", code, "compare", str(tmp_path / "gates.json"), "--group-by=group"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert "benchmark 'group': 2 tests" in shown
