# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the table and the picture of the results from a JSON of the benchmarks::

    python -m pytest benchmarks --gates-json=results.json
    python benchmarks/report.py [results.json]

They are benchmarks/RESULTS.md and benchmarks/results.svg; the JSON, which holds every single measurement, stays out of
the repository. Nothing is rounded in favour of anybody: every ratio shows its interval, and every broken or undecided
promise stands there as such.
"""

from __future__ import annotations

import argparse
import html
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # a checkout that is not installed

from blkmig.gates import report  # noqa: E402

RAW = pathlib.Path("results.json")

HEADER = """# Results of the benchmarks

Made by [report.py](report.py), which replaces this page; [README.md](README.md) says how it was measured and what the
columns mean.
"""

#: The groups that the picture shows, where they were measured.
PICTURE = (
    "2 GiB random, TCP, existing target",
    "2 GiB random, TCP, fresh target",
    "2 GiB random, unix socket, existing target",
    "16 GiB sparse, 2 GiB of data, TCP",
    "1 TiB sparse, 1 GiB of data, TCP",
)
SIGNS = {"pass": "kept", "fail": "**broken**", "undecided": "undecided"}


def medians(comparison: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Return side -> median of a metric, for the sides that have it."""
    return {
        side: statistics.median([figures[metric] for figures in rounds])
        for side, rounds in comparison["figures"].items()
        if all(metric in figures for figures in rounds)
    }


# -- the table -------------------------------------------------------------------------------------------------------


def _promise(gate: Mapping[str, Any] | None) -> tuple[str, str]:
    return (f"{gate['at_least']:g}", SIGNS[gate["verdict"]]) if gate else ("", "")


def _ratio(ratio: Mapping[str, Any]) -> str:
    interval = "" if ratio["high"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return f"{ratio['ratio']:.2f}{interval}"


def table_rows(comparison: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of one group: side, time, CPU, peak RSS, ratio, promise, verdict."""
    cpu, rss = medians(comparison, "cpu"), medians(comparison, "rss")
    gates = {(gate["rival"], gate["metric"]): gate for gate in comparison["gates"]}
    ratios = {(ratio["rival"], ratio["metric"]): ratio for ratio in comparison["ratios"]}
    rows: list[tuple[str, ...]] = []
    for side, wall in medians(comparison, "wall").items():
        cells = (
            report.format_figure(wall, "wall"),
            report.format_figure(cpu[side], "cpu") if side in cpu else "",
            report.format_figure(rss[side], "rss") if side in rss else "",
        )
        if side == comparison["contender"]:
            rows.append((f"**{side}**", *cells, "1", "", ""))
            continue
        rows.append((side, *cells, _ratio(ratios[side, "wall"]), *_promise(gates.get((side, "wall")))))
        rows += [
            (f"… {metric}", "", "", "", _ratio(ratio), *_promise(gates.get((side, metric))))
            for (rival, metric), ratio in ratios.items()
            if rival == side and metric != "wall" and (side, metric) in gates
        ]
    return rows + [(side, f"skipped: {why}", *[""] * 5) for side, why in comparison["skipped"].items()]


def markdown(record: Mapping[str, Any]) -> str:
    """Return the page: what was measured on, and one table of all groups."""
    machine, commit = record["machine_info"], record["commit_info"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    gates = [gate["verdict"] for comparison in record["comparisons"] for gate in comparison["gates"]]
    counts = ", ".join(f"{gates.count(verdict)} {sign.strip('*')}" for verdict, sign in SIGNS.items())
    parts = [
        HEADER,
        f"{machine['cpu']['count']} x {machine['cpu']['brand_raw']}, {machine['memory'] / 2**30:.0f} GiB, "
        f"Linux {machine['release']}, Python {machine['python_version']}; {versions}. "
        f"Commit {commit['id'][:12] or 'unknown'}{' with changes' if commit['dirty'] else ''}, "
        f"{record['datetime'][:10]}. Promises: {counts}.\n",
        "| group, rounds | side | time | CPU, both ends | peak RSS | ratio (interval) | at least | promise |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for comparison in record["comparisons"]:
        rounds = max(len(figures) for figures in comparison["figures"].values())
        group = f"{comparison['group']}, {rounds}"
        for row in table_rows(comparison):
            parts.append(f"| {group} | {' | '.join(row)} |")
            group = ""  # once a group
    return "\n".join(parts) + "\n"


# -- the picture -----------------------------------------------------------------------------------------------------

WIDTH, LEFT, UNIT, LONGEST, LINE = 760, 190, 90, 5.5, 20  # pixels; UNIT is as long as blkmig's own time


def bar(y: int, label: str, ratio: float, low: float, high: float, *, ours: bool) -> list[str]:
    """Draw one side's time, relative to blkmig's, with its interval; a bar that is too long is cut and says so."""
    shown, weight = min(ratio, LONGEST), "bold" if ours else "normal"
    text = f"{ratio:.2f}" + (" ⟶" if ratio > LONGEST else "")
    parts = [
        f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end" font-weight="{weight}">{html.escape(label)}</text>',
        f'<rect x="{LEFT}" y="{y + 3}" width="{shown * UNIT:.1f}" height="{LINE - 6}" rx="2" '
        f'fill="{"#2a7f62" if ours else "#9aa5b1"}"/>',
        f'<text x="{LEFT + max(shown, min(high, LONGEST)) * UNIT + 8:.1f}" y="{y + 14}">{text}</text>',
    ]
    if high > low and low < LONGEST:
        start, end, middle = LEFT + low * UNIT, LEFT + min(high, LONGEST) * UNIT, y + LINE / 2
        parts.append(f'<path d="M{start:.1f} {middle}H{end:.1f}" stroke="#1f2933" stroke-width="1.5"/>')
    return parts


def panel(comparison: Mapping[str, Any], y: int) -> tuple[list[str], int]:
    """Draw one group from `y` on; return it and where the next one may begin."""
    title = html.escape(comparison["group"])
    parts = [f'<text x="{LEFT}" y="{y + 14}" font-weight="bold" fill="#1f2933">{title}</text>']
    sides = [(comparison["contender"], 1.0, 1.0, 1.0)]
    sides += [
        (ratio["rival"], ratio["ratio"], ratio["low"], ratio["high"] or ratio["ratio"])
        for ratio in comparison["ratios"]
        if ratio["metric"] == "wall"
    ]
    y += LINE
    for index, (label, ratio, low, high) in enumerate(sorted(sides, key=lambda side: side[1])):
        parts += bar(y + index * LINE, label, ratio, low, high, ours=label == comparison["contender"])
    bottom = y + len(sides) * LINE
    parts.append(f'<path d="M{LEFT + UNIT} {y}V{bottom}" stroke="#2a7f62" stroke-dasharray="3 3"/>')
    return parts, bottom + LINE


def picture(comparisons: Iterable[Mapping[str, Any]]) -> str:
    """Return the SVG: time of every side relative to blkmig's, one panel a group."""
    parts, y = [f'<text x="{LEFT}" y="20">time relative to blkmig (shorter is better)</text>'], 36
    for comparison in comparisons:
        drawn, y = panel(comparison, y)
        parts += drawn
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#3e4c59">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>', *parts, "</svg>\n"])


def main() -> None:
    """Read the JSON, write RESULTS.md and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("::")[0])
    parser.add_argument("json", nargs="?", type=pathlib.Path, default=RAW)
    parser.add_argument("--folder", type=pathlib.Path, default=HERE, help="where RESULTS.md and results.svg go")
    arguments = parser.parse_args()
    record = json.loads(arguments.json.read_text(encoding="utf-8"))
    if not record["complete"]:
        raise SystemExit(f"{arguments.json} is of a smoke run: its figures mean nothing")
    (arguments.folder / "RESULTS.md").write_text(markdown(record), encoding="utf-8")
    by_group = {comparison["group"]: comparison for comparison in record["comparisons"]}
    shown = [by_group[group] for group in PICTURE if group in by_group]
    (arguments.folder / "results.svg").write_text(picture(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
