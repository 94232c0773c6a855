# SPDX-License-Identifier: GPL-2.0-or-later
"""What a change has cost: this checkout against another one of blkmig, in turns::

    git worktree add ../before REVISION && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/before_after.py ../before

Two parts: whole copies of 2 GiB over TCP and a unix socket, by each checkout's own harness, from the same source into
the same target, for how long that takes depends on where the kernel has the pages of a file; and the groups of
primitives that are stable on shared machines, each checkout's own, whole runs of them in turns. Printed are the
medians, after / before: below 1 is faster now. A group that a checkout measures otherwise is another group.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

HERE = pathlib.Path(__file__).resolve().parents[1]
PRIMITIVES = ("bench_zero.py", "bench_bitmap.py", "bench_framing.py")
SIZE = 2 << 30


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path, metavar="CHECKOUT", help="its extensions are built in place")
    parser.add_argument("--rounds", type=int, default=41, help="of whole copies (default: 41)")
    parser.add_argument("--runs", type=int, default=8, help="of the primitives (default: 8)")
    chosen = parser.parse_args()
    trees = {"before": chosen.before.resolve(), "after": HERE}
    with tempfile.TemporaryDirectory(prefix="blkmig-bench-") as folder:
        with source_in(pathlib.Path(folder)).open("wb") as file:  # before both checkouts look for it
            for _ in range(SIZE >> 20):
                file.write(random.randbytes(1 << 20))
        for link in ("tcp", "unix"):
            compare_copies(trees, link, pathlib.Path(folder), chosen.rounds)
        compare_primitives(trees, pathlib.Path(folder), chosen.runs)


def source_in(folder: pathlib.Path) -> pathlib.Path:
    """Return where the disk is that both checkouts copy."""
    return folder / "before_after.raw"


def compare_copies(trees: dict[str, pathlib.Path], link: str, folder: pathlib.Path, rounds: int) -> None:
    """Copy in turns, in an order that changes; the first round is not counted."""
    walls: dict[str, list[float]] = {name: [] for name in trees}
    cpus: dict[str, list[float]] = {name: [] for name in trees}
    with contextlib.ExitStack() as stack:
        copiers = {name: stack.enter_context(copier(tree, link, folder)) for name, tree in trees.items()}
        for number in range(rounds + 1):
            for name in random.sample(sorted(trees), len(trees)):
                wall, cpu = copiers[name]()
                if number:
                    walls[name].append(wall)
                    cpus[name].append(cpu)
    show(f"2 GiB random, {link}, existing target", walls)
    show("… cpu", cpus)


@contextlib.contextmanager
def copier(tree: pathlib.Path, link: str, folder: pathlib.Path) -> Iterator[Callable[[], tuple[float, float]]]:
    """Start what copies with the code of `tree`; called, it does so once, and returns the seconds and those of CPU."""
    words = [sys.executable, __file__, "--serve", str(tree), link, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def copy() -> tuple[float, float]:
            stdin.write("\n")
            stdin.flush()
            wall, cpu = map(float, stdout.readline().split())
            return wall, cpu

        try:
            yield copy
        finally:
            stdin.close()


def serve(tree: str, link: str, folder: str) -> None:
    """Copy each time that a line comes, and say how long that took."""
    sys.path[:0] = [tree, f"{tree}/benchmarks", f"{tree}/tests", f"{tree}/tests/support"]
    from harness import arena as arenas
    from harness import tools

    place = pathlib.Path(folder)
    arena = arenas.Arena(place, tools.Tools(place / "tools"), False, frozenset(), False)
    source = source_in(place)
    job = arena.job(source, link=link)
    arena.create_target(job)
    side = arena.sides(["blkmig"], job)[0]["blkmig"]
    for _ in sys.stdin:
        if side.setup:
            side.setup()
        figures = side.run()
        if side.check:
            side.check()
        print(figures["wall"], figures["cpu"], flush=True)


def compare_primitives(trees: dict[str, pathlib.Path], folder: pathlib.Path, runs: int) -> None:
    """Run the stable groups of both checkouts in turns, and compare the medians of their medians."""
    found: dict[str, dict[str, list[float]]] = {}
    results = folder / "primitives.json"
    for _ in range(runs):
        for name, tree in trees.items():
            words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            words += ["--gates=ci", f"--gates-json={results}", *(f"benchmarks/{file}" for file in PRIMITIVES)]
            environment = os.environ | {"PYTHONPATH": str(tree)}
            subprocess.run(words, cwd=tree, env=environment, stdout=subprocess.DEVNULL, check=False)
            for entry in json.loads(results.read_text())["benchmarks"]:
                if entry["name"] == "blkmig":
                    found.setdefault(entry["group"], {}).setdefault(name, []).append(entry["stats"]["median"])
    for group, seconds in sorted(found.items()):
        if len(seconds) == len(trees):
            show(group, seconds)


def show(group: str, seconds: dict[str, list[float]]) -> None:
    """Print one line: both medians, their ratio, and where it is with 95 %, drawn again and again."""
    before, after = seconds["before"], seconds["after"]
    drawn = sorted(drawn_median(after) / drawn_median(before) for _ in range(2000))
    ratio = statistics.median(after) / statistics.median(before)
    print(
        f"{group:45} {statistics.median(before):12.4g} s {statistics.median(after):12.4g} s   "
        f"{ratio:.3f} ({drawn[50]:.3f} to {drawn[-50]:.3f})",
        flush=True,
    )


def drawn_median(seconds: list[float]) -> float:
    """Return the median of as many of them, drawn at random."""
    return statistics.median(random.choices(seconds, k=len(seconds)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
