# SPDX-License-Identifier: GPL-2.0-or-later
"""Ratio gates: tests that fail when something that must be faster no longer is.

Times on a shared machine are noise; the ratio of two times measured in turns is not. A gate runs both sides A B A B,
in an order that changes from round to round, until it knows the ratio of their medians well enough. Its verdict is one
of three: the promise is kept (**pass**), the promise is broken beyond doubt (**fail**), or the noise hides the answer
(**undecided**: a warning, not a failure). If the true ratio is right at the threshold, at most 5 % of runs give a wrong
pass or fail. If it is a little away from the threshold, hardly any run does.

In your own project::

    pip install blkmig[gates]              # a pytest plugin; it uses nothing else of blkmig
    pytest -p blkmig.gates.plugin          # or in the topmost conftest.py: pytest_plugins = ["blkmig.gates.plugin"]

    def test_scan(ratio):                                        # tests/test_speed.py
        block = bytearray(1 << 20)
        ratio({"ours": lambda: scan(block), "numpy": lambda: np.any(block)}, at_least=4)

    def test_tool(ratio, tmp_path):                              # commands; CPU time; set-up outside the timing
        ours, theirs = ["ours", "big.raw", str(tmp_path / "a")], ["cp", "big.raw", str(tmp_path / "b")]
        ratio({"ours": gates.Side(ours, setup=drop), "cp": theirs}, at_least={"cp": 0.8, "cp:cpu": 0.7}, max_time=60)

    def test_call(ratio):                                        # nanoseconds: timeit's own loop
        ratio({"ours": timeit.Timer("f(b)", globals=ours), "theirs": timeit.Timer("f(b)", globals=theirs)}, at_least=2)

The first side is the contender, the others are its rivals; a ratio of 2 says that the contender needs half as much. All
metrics are better when smaller: "wall" and "cpu" (seconds, children included), and whatever a callable returns:
``return {"downtime": 0.03}`` makes ``at_least={"rival:downtime": 1}`` a gate. So several metrics can judge the same
runs.

Promises that are adjusted now and then may stand in a file ``gates.toml`` beside the tests instead of in the code::

    ["test_scan"]                                                # the group: group=, pytest.mark.benchmark, or the test
    numpy = { at_least = 4.0, margin = 0.25, ci = true }         # key: "rival" or "rival:metric"
    memcmp = { at_least = 2.0, ci_at_least = 1.1 }               # a goal, and what must never be lost on the way to it

For a CI on shared machines::

    pytest -p blkmig.gates.plugin tests/test_speed.py --gates=ci --gates-json=gates.json

judges only gates with ``ci = true``, which those in the code always have, and forgives their `margin`. A gate with
`ci_at_least` is judged by that number, and needs no ``ci = true``. ``--gates=off`` measures only; ``--gates-quick`` is
a smoke test, one round and no verdict; ``--gates-max-time`` caps each comparison. With pytest-xdist all results stand
in one table and one file, and the workers measure gates one at a time. Other tests may still run beside a gate and
disturb it, so run the gates in a session of their own. If a test is run again (pytest-rerunfailures), its last run
counts. To make undecided gates failures: ``-W error::blkmig.gates.plugin.UndecidedGate``.

pytest-benchmark is not needed. If it is there, groups have the names that its marker gives
(``pytest.mark.benchmark(group=...)``), and ``pytest-benchmark compare gates.json --group-by=group`` reads the JSON. The
JSON also holds every figure of every round, the machine, versions and the commit.

A group of the file that no test has is told at the end of a run of all the tests of its folder.

Files: `judge` (statistics, no clock), `stopwatch` (runs), `gate` (promises, when to stop), `report`, `unused` (groups
that no test has), `plugin` (pytest).
"""

from .gate import Comparison, Gate, GateError, Limits
from .judge import Estimate, Verdict
from .stopwatch import Side

__all__ = ["Comparison", "Estimate", "Gate", "GateError", "Limits", "Side", "Verdict"]
