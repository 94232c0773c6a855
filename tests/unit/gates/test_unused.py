# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of a gates.toml that no test has: after a test was renamed nobody kept its promise, and nobody was told."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

SIDES = "{'ours': lambda: {'wall': 1.0}, 'rival': lambda: {'wall': 2.0}}"
TESTS = f"""
    import pytest

    def test_one(ratio):
        ratio({SIDES})

    @pytest.mark.parametrize("kind", "ab")
    def test_two(ratio, kind):
        ratio({SIDES}, group=f"two {{kind}}")
"""
GATES = "[test_one]\nrival = 1\n['two a']\nrival = 1\n['two b']\nrival = 1\n"
OLD = "['two c']\nrival = 1\n"


@pytest.fixture(autouse=True)
def _tests(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(**{"below/test_it": TESTS})
    (pytester.path / "below" / "gates.toml").write_text(GATES + OLD)


def told(pytester: pytest.Pytester, *words: str, exit_code: int = 0) -> list[str]:
    """Return what a run tells of groups that no test has."""
    result = pytester.runpytest("-p", "blkmig.gates.plugin", "-p", "no:cacheprovider", *words)
    assert result.ret == exit_code
    return [line for line in result.outlines if "no test has the group" in line]


@pytest.mark.parametrize("words", [(), ("below",), (".", "--gates-quick"), ("below", "--gates=off")])
def test_it_is_told(pytester: pytest.Pytester, words: tuple[str, ...]) -> None:
    [line] = told(pytester, *words)
    path = pytester.path / "below" / "gates.toml"
    assert line == (
        f"{path}: no test has the group 'two c': nobody keeps its promises; correct its name, or remove it"
    )


def test_with_workers(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    [line] = told(pytester, "-p", "xdist", "-n1")
    assert "the group 'two c':" in line


def test_all_of_them_are_told(pytester: pytest.Pytester) -> None:
    (pytester.path / "below" / "gates.toml").write_text(f"{GATES}{OLD}[\"two\\u001b[2J\"]\nrival = 1\n")
    [line] = told(pytester)
    assert "the group 'two c', 'two\\x1b[2J':" in line


def test_nothing_is_told_of_groups_that_tests_have(pytester: pytest.Pytester) -> None:
    (pytester.path / "below" / "gates.toml").write_text(GATES)
    assert told(pytester) == []


@pytest.mark.parametrize(
    "words",
    [("-k", "two"), ("--deselect", "below/test_it.py::test_one"), ("below/test_it.py",), ("--maxfail=1",),
     ("below/test_it.py::test_one",), ("--ignore=below/other",)],
)  # fmt: skip
def test_nothing_is_told_where_some_tests_were_left_out(pytester: pytest.Pytester, words: tuple[str, ...]) -> None:
    assert told(pytester, *words) == []


def test_a_plugin_leaves_tests_out(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        def pytest_collection_modifyitems(config, items):
            config.hook.pytest_deselected(items=[items.pop()])
    """)
    assert told(pytester) == []


@pytest.mark.parametrize("how", ["pytest.skip('no peer')", "assert False"])
def test_a_test_that_did_not_get_so_far_may_have_it(pytester: pytest.Pytester, how: str) -> None:
    pytester.makepyfile(**{"below/test_other": f"import pytest\ndef test_three(ratio):\n    {how}\n"})
    [line] = told(pytester, exit_code=int("assert" in how))
    assert "'two c', unless one of those that were skipped or failed has it (1):" in line


def test_a_module_that_is_skipped_may_have_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(**{"below/test_other": "import pytest\npytest.importorskip('no_such_module')\n"})
    [line] = told(pytester)
    assert "skipped or failed has it (1):" in line


def test_a_run_that_was_interrupted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(**{"below/test_a": "import pytest\ndef test_three(ratio):\n    pytest.exit('enough')\n"})
    assert told(pytester, exit_code=2) == []


def test_what_shared_machines_do_not_judge_has_its_group(pytester: pytest.Pytester) -> None:
    (pytester.path / "below" / "gates.toml").write_text("[test_one]\nrival = { at_least = 1 }\n")
    assert told(pytester, "--gates=ci") == []
