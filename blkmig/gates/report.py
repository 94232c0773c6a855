# SPDX-License-Identifier: GPL-2.0-or-later
"""Show comparisons to people (a table) and to programs (JSON).

The JSON is a superset of pytest-benchmark's: the sides stand under ``benchmarks`` with the same groups, names and
statistics, so ``pytest-benchmark compare`` reads it; the ratios and their verdicts stand under ``comparisons``.
"""

from __future__ import annotations

import datetime
import errno
import json
import math
import os
import pathlib
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import gate, judge, machine

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def format_figure(value: float, metric: str) -> str:
    """Return a figure for a person: seconds, bytes ("rss"), or the bare number of a metric whose unit is not known."""
    if metric == "rss":
        return f"{value / (1 << 20):.1f} MiB"
    if metric not in ("wall", "cpu"):
        return f"{value:.4g}"
    factor, unit = next((pair for pair in _UNITS if value >= pair[0]), _UNITS[-1])
    return f"{value / factor:.4g} {unit}"


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of texts as a table; the first column is aligned to the left, the others to the right.

    What is not to be printed is escaped: a name or a reason may have several lines, or commands for the terminal.
    """
    lines = [[cell if cell.isprintable() else repr(cell)[1:-1] for cell in line] for line in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([texts[0].rstrip(), "-" * len(texts[0]), *(text.rstrip() for text in texts[1:])])


def _ratio_cells(estimate: judge.Estimate) -> tuple[str, str]:
    interval = "too few rounds" if math.isinf(estimate.high) else f"{estimate.low:.3g} .. {estimate.high:.3g}"
    return f"{estimate.ratio:.3g}x", interval


def comparison_rows(comparison: gate.Comparison) -> list[tuple[str, ...]]:
    """Return the rows under :data:`TABLE_HEAD`: one for each side, and for each other metric that a gate names."""
    metrics = ["wall", *dict.fromkeys(item.metric for item in comparison.gates if item.metric != "wall")]
    rows: list[tuple[str, ...]] = []
    for metric in metrics:
        judged = {item.gate.rival: item for item in comparison.judgements() if item.gate.metric == metric}
        for side in comparison.sides:
            if metric != "wall" and side != comparison.contender and side not in judged:
                continue
            figures = comparison.figures(side, metric)
            median = statistics.median(figures)
            deviation = statistics.median(abs(value - median) for value in figures) / median if median else 0.0
            name = side if metric == "wall" else f"{side} ({metric})"
            cells = (f"  {name}", format_figure(median, metric), f"{deviation:.1%}")
            if side == comparison.contender:
                rows.append((*cells, "", "", "", ""))
                continue
            promise = (f">= {judged[side].threshold:.3g}", judged[side].verdict.value) if side in judged else ("", "")
            rows.append((*cells, *_ratio_cells(comparison.ratio(side, metric)), *promise))
    rows += [(f"  {side}", "-", "", "", "", "", f"skipped: {why}") for side, why in comparison.skipped.items()]
    return rows


TABLE_HEAD = ("group / side", "median", "+-", "ratio", "interval", "gate", "verdict")


def format_comparisons(comparisons: Iterable[gate.Comparison]) -> str:
    """Return one table of all comparisons; "ratio" is how many times better the first side is than this rival."""
    return format_results([result_of(comparison, "") for comparison in comparisons])


def format_results(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the table of results that :func:`result_of` made, in this process or in others."""
    rows: list[Sequence[str]] = []
    for result in results:
        again = f", run {result['runs']} times" if result.get("runs", 1) > 1 else ""
        rows += [(f"{result['title']}{again})", "", "", "", "", "", ""), *result["rows"]]
    return format_table(TABLE_HEAD, rows)


def result_of(comparison: gate.Comparison, nodeid: str) -> dict[str, Any]:
    """Return everything that table and JSON say about a comparison, as plain data that can be sent elsewhere.

    Never raises: if a comparison cannot be shown, the reason stands in its place, and the others are still shown.
    """
    title = f"{comparison.group} ({len(comparison.rounds)} rounds, {comparison.seconds:.1f} s"
    result: dict[str, Any] = {"test": nodeid, "title": title, "rows": [], "benchmarks": [], "comparison": {}}
    try:
        result["rows"] = [list(row) for row in comparison_rows(comparison)]
        result["benchmarks"] = benchmark_records(comparison, nodeid)
        result["comparison"] = comparison_record(comparison, nodeid)
        json.dumps(result, allow_nan=False)
    except Exception as error:
        why = f"cannot be shown: {type(error).__name__}: {error}"
        comparison_only = {"group": comparison.group, "test": nodeid, "error": why}
        result |= {"rows": [[f"  {why}", *[""] * 6]], "benchmarks": [], "comparison": comparison_only}
    return result


def statistics_of(values: Sequence[float], loops: int) -> dict[str, Any]:
    """Return the statistics that pytest-benchmark's tools read, with all values."""
    ordered = sorted(values)
    q1, median, q3 = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else [ordered[0]] * 3
    mean = statistics.mean(ordered)
    stddev = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    mild = sum(1 for value in ordered if abs(value - mean) > stddev)
    severe = sum(1 for value in ordered if not q1 - 1.5 * (q3 - q1) <= value <= q3 + 1.5 * (q3 - q1))
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": stddev,
        "rounds": len(ordered),
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": severe,
        "stddev_outliers": mild,
        "outliers": f"{mild};{severe}",
        "ld15iqr": next(value for value in ordered if value >= q1 - 1.5 * (q3 - q1)),
        "hd15iqr": next(value for value in reversed(ordered) if value <= q3 + 1.5 * (q3 - q1)),
        "ops": 1 / mean if mean else 0.0,
        "total": sum(ordered),
        "iterations": loops,
        "data": list(values),
    }


def benchmark_records(comparison: gate.Comparison, nodeid: str) -> list[dict[str, Any]]:
    """Return one record per side, wall time, in the shape of pytest-benchmark; other metrics stand in extra_info."""
    records = []
    for side in comparison.sides:
        metrics = sorted(set.intersection(*(set(figures) for figures in comparison.rounds.figures[side])) - {"wall"})
        records.append(
            {
                "group": comparison.group,
                "name": side,
                "fullname": f"{nodeid}[{side}]",
                "params": None,
                "param": None,
                "extra_info": {metric: comparison.median(side, metric) for metric in metrics},
                "options": {},
                "stats": statistics_of(comparison.figures(side), comparison.rounds.loops[side]),
            }
        )
    return records


def _estimate_record(estimate: judge.Estimate) -> dict[str, Any]:
    high = None if math.isinf(estimate.high) else estimate.high
    return {"ratio": estimate.ratio, "low": estimate.low, "high": high, "rounds": estimate.rounds}


def comparison_record(comparison: gate.Comparison, nodeid: str) -> dict[str, Any]:
    """Return everything about one comparison: all figures of all rounds, the ratios, the gates with their verdicts."""
    metrics = ["wall", *dict.fromkeys(item.metric for item in comparison.gates if item.metric != "wall")]
    return {
        "group": comparison.group,
        "test": nodeid,
        "contender": comparison.contender,
        "seconds": comparison.seconds,
        "figures": comparison.rounds.figures,
        "skipped": comparison.skipped,
        "ratios": [
            {"rival": rival, "metric": metric, **_estimate_record(comparison.ratio(rival, metric))}
            for metric in metrics
            for rival in comparison.rivals
            if metric in comparison.rounds.figures[rival][0]
        ],
        "gates": [
            {
                "rival": item.gate.rival,
                "metric": item.gate.metric,
                "at_least": item.gate.at_least,
                "threshold": item.threshold,
                "verdict": item.verdict.value,
                **_estimate_record(item.estimate),
            }
            for item in comparison.judgements()
        ],
    }


def document(
    results: Iterable[Mapping[str, Any]],
    *,
    root: pathlib.Path,
    versions: Mapping[str, object],
    complete: bool,
) -> dict[str, Any]:
    """Return the whole JSON document; `complete` is False for a smoke run, whose figures mean nothing."""
    results = list(results)
    return {
        "machine_info": machine.machine_info(),
        "commit_info": machine.commit_info(root),
        "versions": {str(name): str(version) for name, version in versions.items()},
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": "5.0.0",
        "complete": complete,
        "benchmarks": [record for result in results for record in result["benchmarks"]],
        "comparisons": [{**result["comparison"], "runs": result.get("runs", 1)} for result in results],
    }


def check_path(path: pathlib.Path) -> None:
    """Make the folder of `path`, and raise :class:`OSError` if it can be told now that no file can be written there."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    place = path if path.exists() and not path.is_file() else path.parent
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def write_json(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Write `record` so that `path` is never half written; seven digits of a figure are more than any clock has.

    A symlink stays: the file that it points to is written. A pipe or a terminal is written to directly.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(record), parse_float=lambda digits: float(f"{float(digits):.7g}"))
    text = json.dumps(rounded, indent=1, allow_nan=False) + "\n"
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
