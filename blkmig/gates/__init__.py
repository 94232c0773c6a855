# SPDX-License-Identifier: GPL-2.0-or-later
"""Ratio gates: tests that fail when something that must be faster no longer is.

Times on a shared machine are noise; the ratio of two times measured in turns is not. A gate runs both sides A B A B,
in an order that changes from round to round, until the ratio of their medians is known well enough, and says one of
three things: the promise is kept (**pass**), it is broken beyond doubt (**fail**), or the noise does not tell
(**undecided**: a warning, not a failure). A wrong pass or fail comes in at most 5 % of runs that stand right at the
threshold, and hardly ever a little away from it.

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

The first side is the contender, the others are its rivals; a ratio of 2 says that the contender needs half as much.
All metrics are better when smaller: "wall" and "cpu" (seconds, children included), and whatever a callable returns:
``return {"downtime": 0.03}`` makes ``at_least={"rival:downtime": 1}`` a gate. So several metrics judge one series.

Promises that are tuned may stand in a file ``gates.toml`` beside the tests instead of in the code::

    ["test_scan"]                                                # the group: group=, pytest.mark.benchmark, or the test
    numpy = { at_least = 4.0, margin = 0.25, ci = true }         # key: "rival" or "rival:metric"
    memcmp = { at_least = 2.0, ci_at_least = 1.1 }               # a goal, and what must never be lost on the way to it

For a CI on shared machines::

    pytest -p blkmig.gates.plugin tests/test_speed.py --gates=ci --gates-json=gates.json

judges only gates with ``ci = true`` (those in the code always are) and forgives their `margin`, or judges by their
`ci_at_least`, which needs no ``ci = true``. ``--gates=off`` measures only; ``--gates-quick`` is a smoke test, one round
and no verdict; ``--gates-max-time`` caps each comparison.
With pytest-xdist all results stand in one table and one file, and gates are measured one at a time; other tests may run
beside them, so gates are best run apart. Of a test that is run again (pytest-rerunfailures) the last run counts.
To make undecided gates failures: ``-W error::blkmig.gates.plugin.UndecidedGate``.

With pytest-benchmark: groups have the same names (``pytest.mark.benchmark(group=...)`` is heeded), and the JSON is
readable by ``pytest-benchmark compare gates.json --group-by=group``; without it nothing is missing. The JSON also holds
every figure of every round, machine, versions and commit.

Files: `judge` (statistics, no clock), `stopwatch` (runs), `gate` (promises, when to stop), `report`, `plugin` (pytest).
"""

from .gate import Comparison, Gate, GateError, Limits
from .judge import Estimate, Verdict
from .stopwatch import Side

__all__ = ["Comparison", "Estimate", "Gate", "GateError", "Limits", "Side", "Verdict"]
