# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest plugin, run in pytest: options, verdicts, table, JSON. Sides give their own figures, nothing is timed."""

import ast
import itertools
import json
import pathlib

import pytest

import blkmig.gates

pytest_plugins = ["pytester"]

SIDES = "{'ours': lambda: {'wall': 1.0, 'cpu': 1.0}, 'rival': lambda: {'wall': 2.0, 'cpu': 0.5}}"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Keep the other installed plugins out: importing them is all that would take time here."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def run(pytester):
    """Run one test that calls ``ratio(SIDES, <arguments>)`` with the options given."""

    def run_ratio(arguments, *options, before=""):
        pytester.makepyfile(f"import pytest\n{before}\ndef test_it(ratio):\n    ratio({SIDES}, {arguments})\n")
        return pytester.runpytest("-p", "blkmig.gates.plugin", "-p", "no:cacheprovider", *options)

    return run_ratio


def test_pass_shows_a_table(run):
    result = run("at_least=1.5")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*= ratio gates =*", "*test_it (5 rounds*", "*rival * 2x *>= 1.5 * pass"])


def test_decided_loss_fails_with_the_table(run):
    result = run("at_least=2.5")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_it: ours against rival: 2x [[]2, 2], at least 2.5x was promised", "*fail"])


def test_another_metric(run):
    run("at_least={'rival': 2, 'rival:cpu': 0.5}").assert_outcomes(passed=1)
    run("at_least={'rival': 2, 'rival:cpu': 0.6}").assert_outcomes(failed=1)


def test_undecided_warns_and_passes(run):
    result = run("at_least=1.5, max_rounds=4")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*UndecidedGate: test_it: ours against rival: 2x (too few rounds*"])


def test_undecided_can_be_made_a_failure(run):
    run("at_least=1.5, max_rounds=4", "-W", "error::blkmig.gates.plugin.UndecidedGate").assert_outcomes(failed=1)


def test_unknown_rival(run):
    result = run("at_least={'nobody': 1.5}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GateError: 'test_it': gates against [[]'nobody'], but the rivals are [[]'rival']"])


def test_skipped_rival(run):
    result = run("at_least={'peer': 1.5}, skipped={'peer': 'not installed'}")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*peer * skipped: not installed"])


def test_quick_runs_once_and_judges_nothing(run):
    result = run("at_least=100", "--gates-quick")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*smoke run*", "*test_it (1 rounds*"])


def test_off_measures_only(run):
    result = run("at_least=100", "--gates=off")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_it (5 rounds*"])


@pytest.mark.parametrize(
    ("gate", "mode", "outcome"),
    [
        ("{ at_least = 2.1 }", "all", "failed"),
        ("{ at_least = 2.1 }", "ci", "skipped"),
        ("{ at_least = 2.1, ci = true }", "ci", "failed"),
        ("{ at_least = 2.1, ci = true, margin = 0.1 }", "ci", "passed"),
        ("{ at_least = 2.1, ci = true, margin = 0.1 }", "all", "failed"),
        ("{ at_least = 4, ci_at_least = 1.9 }", "all", "failed"),
        ("{ at_least = 4, ci_at_least = 1.9 }", "ci", "passed"),
        ("{ at_least = 4, ci_at_least = 2.1 }", "ci", "failed"),
        ("1.9", "ci", "passed"),
    ],
)
def test_gates_in_the_file(run, pytester, gate, mode, outcome):
    (pytester.path / "gates.toml").write_text(f"[test_it]\nrival = {gate}\n")
    run("", f"--gates={mode}").assert_outcomes(**{outcome: 1})


def test_the_code_overrides_the_file(run, pytester):
    (pytester.path / "gates.toml").write_text("[test_it]\nrival = 100\n")
    run("at_least=2").assert_outcomes(passed=1)


def test_the_group_is_pytest_benchmarks(run, pytester):
    (pytester.path / "gates.toml").write_text("['the group']\nrival = 100\n")
    before = "pytestmark = pytest.mark.benchmark(group='the group')"
    run("", before=before).assert_outcomes(failed=1)
    run("group='other'", before=before).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "gate", ["nan", "inf", "{ at_least = 2, ci_at_least = nan }", "{ at_least = 2, margin = nan }"]
)
def test_gates_that_nothing_could_decide(run, pytester, gate):
    """A comparison with NaN is never decided, and what is not decided passes."""
    (pytester.path / "gates.toml").write_text(f'[test_it]\nrival = {gate}\n')
    result = run("max_time=0.1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GateError: *gates.toml: gate 'rival': *must be *"])


@pytest.mark.parametrize(
    "words",
    ["at_least=float('nan')", "at_least=float('inf')", "at_least=10**400", "at_least='5'", "at_least=[5]",
     "at_least={5: 5}", "at_least=True", "group=b'x'", "group=5"],
)  # fmt: skip
def test_what_is_no_gate(run, pytester, words):
    """D4: with a name that JSON cannot have, the table and the file were lost at the end."""
    result = run(f"{words}, max_time=0.1", "--gates-json=o.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GateError: *"])
    assert (pytester.path / "o.json").exists()


def test_a_number_of_any_kind_is_a_gate(run):
    run("at_least=__import__('fractions').Fraction(3, 2), max_time=0.1").assert_outcomes(passed=1)


def test_a_file_that_is_no_text(run, pytester):
    (pytester.path / "gates.toml").write_bytes(b"\xff\xfe[test_it]")
    result = run("max_time=0.1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GateError: *gates.toml: *utf-8*"])


def test_broken_file(run, pytester):
    (pytester.path / "gates.toml").write_text("[test_it]\nrival = 'fast'\n")
    result = run("")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GateError: *gates.toml: gate 'rival': at_least must be a number*"])


@pytest.mark.parametrize("options", [[], ["--gates-quick"]])
def test_json(run, pytester, options):
    run("at_least=1.5, group='g'", "--gates-json=out/gates.json", *options).assert_outcomes(passed=1)
    record = json.loads((pytester.path / "out" / "gates.json").read_text())
    assert record["complete"] == (not options)
    assert record["comparisons"][0]["test"].endswith("::test_it")
    assert {item["group"] for item in record["benchmarks"]} == {"g"}
    assert "pytest" in record["versions"]
    assert record["machine_info"]["cpu"]["count"] >= 1


def test_json_holds_failures_too(run, pytester):
    run("at_least=3", "--gates-json=gates.json").assert_outcomes(failed=1)
    record = json.loads((pytester.path / "gates.json").read_text())
    assert record["comparisons"][0]["gates"][0]["verdict"] == "fail"


FOUR = """
import pytest, time
@pytest.mark.parametrize("n", range(4))
def test_it(ratio, n):
    at = []
    def ours():
        at.append(time.monotonic())
        return {"wall": 1.0}
    ratio({"ours": ours, "rival": lambda: {"wall": 2.0}}, group=f"g{n}", at_least=1.5)
    with open("times", "a") as file:
        file.write(f"{at[0]} {at[-1]}\\n")
"""


def test_workers_share_a_table_and_a_file(pytester, monkeypatch):
    """D2: no table, two of four results, sides timed side by side."""
    pytest.importorskip("xdist")
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(blkmig.gates.__file__).parents[2]))
    pytester.makepyfile(FOUR)
    options = ("-p", "xdist", "-n2", "-p", "blkmig.gates.plugin", "--gates-json=o.json")
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*= ratio gates =*"])
    for n in range(4):
        result.stdout.fnmatch_lines([f"g{n} (5 rounds*"])
    record = json.loads((pytester.path / "o.json").read_text())
    assert sorted(item["group"] for item in record["comparisons"]) == ["g0", "g1", "g2", "g3"]
    assert len(record["benchmarks"]) == 8
    times = sorted(tuple(map(float, line.split())) for line in (pytester.path / "times").read_text().splitlines())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times)), "one at a time"


def test_a_link_stays_a_link(run, pytester):
    """D3."""
    (pytester.path / "there").mkdir()
    (pytester.path / "there" / "real.json").write_text("old")
    (pytester.path / "there" / "real.json").chmod(0o640)
    (pytester.path / "link.json").symlink_to("there/real.json")
    run("at_least=1.5", "--gates-json=link.json").assert_outcomes(passed=1)
    assert (pytester.path / "link.json").is_symlink()
    assert json.loads((pytester.path / "there" / "real.json").read_text())["complete"]
    assert (pytester.path / "there" / "real.json").stat().st_mode & 0o777 == 0o640


def test_what_is_no_file_is_written_as_it_is(run, pytester):
    """D3: /dev/null was replaced by a file, as root."""
    (pytester.path / "null").symlink_to("/dev/null")
    run("at_least=1.5", "--gates-json=null").assert_outcomes(passed=1)
    assert pathlib.Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    "figures",
    ['{"headers": b"x", 1: 2}', '{"wall": "north"}', '{"wall": float("nan")}', '{"wall": float("inf")}', '{"x": None}',
     '{"wall": 0}', '{"cpu": -1}', '{b"wall": 1}', '{"x": True}', '{"x": 1j}'],
)
def test_bad_figures_are_told_where_they_enter(pytester, figures):
    """D4: the table was lost in a TypeError at the end, or the JSON was none."""
    pytester.makepyfile(
        f"""
        def test_good(ratio):
            ratio({SIDES}, at_least=1.5)
        def test_bad(ratio):
            ratio({{"ours": lambda: {figures}, "rival": lambda: 1}})
        """
    )
    result = pytester.runpytest("-p", "blkmig.gates.plugin", "--gates-json=o.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*ValueError: *metric*", "*= ratio gates =*", "test_good (*"])
    record = json.loads((pytester.path / "o.json").read_text(), parse_constant=pytest.fail)
    assert len(record["comparisons"]) == 1


def test_figures_of_numpy_are_numbers(pytester):
    pytester.makepyfile(
        """
        import numpy as np
        def test_it(ratio):
            ratio({"a": lambda: {"wall": np.float32(1), "x": np.int64(3)}, "b": lambda: {"wall": np.float64(2)}})
        """
    )
    pytester.runpytest("-p", "blkmig.gates.plugin", "--gates-json=o.json").assert_outcomes(passed=1)
    record = json.loads((pytester.path / "o.json").read_text())
    assert record["benchmarks"][0]["extra_info"]["x"] == 3


def test_a_comparison_that_cannot_be_shown_takes_no_other_with_it(run, monkeypatch, pytester):
    """D4: whatever happens."""
    monkeypatch.setattr("blkmig.gates.report.comparison_rows", lambda _: 1 / 0)
    result = run("at_least=1.5", "--gates-json=o.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*= ratio gates =*", "test_it (5*", "*cannot be shown: ZeroDivisionError*"])
    assert "ZeroDivisionError" in json.loads((pytester.path / "o.json").read_text())["comparisons"][0]["error"]


@pytest.mark.parametrize(("path", "why"), [("folder", "Is a directory"), ("file/o.json", "exists|Not a directory")])
def test_a_path_that_cannot_be_written_is_told_first(run, pytester, path, why):
    """D4."""
    (pytester.path / "folder").mkdir()
    (pytester.path / "file").write_text("")
    result = run("at_least=1.5", f"--gates-json={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.re_match_lines([f"ERROR: --gates-json: cannot write .*({why})"])


def test_a_file_that_cannot_be_written_at_the_end_leaves_the_table(run, pytester, monkeypatch):
    """D4."""

    def full(path, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("blkmig.gates.report.write_json", full)
    result = run("at_least=1.5", "--gates-json=o.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*= ratio gates =*", "test_it (*", "--gates-json: cannot write *: No space left*"])


def test_a_run_whose_gates_all_raise_leaves_no_older_file(pytester):
    """D4: the previous run's JSON stayed."""
    (pytester.path / "o.json").write_text('{"old": 1}')
    pytester.makepyfile("def test_it(ratio):\n    ratio({'a': lambda: 1 / 0})\n")
    pytester.runpytest("-p", "blkmig.gates.plugin", "--gates-json=o.json").assert_outcomes(failed=1)
    assert json.loads((pytester.path / "o.json").read_text())["comparisons"] == []


def test_of_a_test_that_is_run_again_the_last_run_counts(pytester):
    """D5: the failed and the passed record were both in the JSON. The loop is that of pytest-rerunfailures."""
    pytester.makeconftest(
        """
        import pytest
        from _pytest.runner import runtestprotocol

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item, nextitem):
            for _ in range(5):
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
                failed = any(report.failed for report in reports)
                for report in reports:
                    report.outcome = "rerun" if report.failed else report.outcome
                    item.ihook.pytest_runtest_logreport(report=report)
                if not failed:
                    return True
                item._initrequest()
            return True
        """
    )
    pytester.makepyfile(
        """
        runs = []
        def test_it(ratio):
            runs.append(1)
            rival = 2.0 * len(runs)
            ratio({"ours": lambda: {"wall": 1.0}, "rival": lambda: {"wall": rival}}, at_least=5)
        """
    )
    result = pytester.runpytest("-p", "blkmig.gates.plugin", "--gates-json=o.json")
    result.stdout.fnmatch_lines(["test_it (5 rounds, *, run 3 times)*", "*rival*6x*pass*"])
    [record] = json.loads((pytester.path / "o.json").read_text())["comparisons"]
    assert (record["runs"], record["gates"][0]["verdict"]) == (3, "pass")


def test_the_options_are_there_where_they_are_asked_for(pytester, monkeypatch):
    """D6: nothing registers the plugin for everybody who has blkmig installed."""
    root = pathlib.Path(blkmig.gates.__file__).parents[2]
    assert "pytest11" not in (root / "pyproject.toml").read_text()
    monkeypatch.setenv("PYTHONPATH", str(root))
    assert "--gates" not in pytester.runpytest_subprocess("--help").stdout.str()
    pytester.makeconftest("pytest_plugins = ['blkmig.gates.plugin']")
    assert "--gates-json" in pytester.runpytest_subprocess("--help").stdout.str()


def test_errors_of_a_side_go_through(pytester):
    pytester.makepyfile("def test_it(ratio):\n    ratio({'a': lambda: 1 / 0})\n")
    result = pytester.runpytest("-p", "blkmig.gates.plugin")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ZeroDivisionError*"])


def test_works_without_pytest_benchmark(pytester, monkeypatch):
    """In a fresh process; only the package's own start may load other parts of blkmig, not the plugin."""
    pytester.makepyfile(
        f"""
        import sys
        def test_it(ratio):
            ratio({SIDES}, at_least=1.5)
            assert "pytest_benchmark" not in sys.modules
        """
    )
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(blkmig.gates.__file__).parents[2]))
    result = pytester.runpytest_subprocess("-p", "no:benchmark", "-p", "blkmig.gates.plugin", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("path", sorted(pathlib.Path(blkmig.gates.__file__).parent.glob("*.py")), ids=lambda p: p.stem)
def test_imports_nothing_else_of_blkmig(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{path}:{node.lineno}"
            names = [] if node.level else [str(node.module)]
        assert not {name.partition(".")[0] for name in names} & {"blkmig", "numpy"}, f"{path}:{node.lineno}"
