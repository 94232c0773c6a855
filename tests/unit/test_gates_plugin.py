# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest plugin, run in pytest: options, verdicts, table, JSON. Sides give their own figures, nothing is timed."""

import ast
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
    result.assert_outcomes(passed=1, warnings=1)
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
