# SPDX-License-Identifier: GPL-2.0-or-later
"""The page about a migration: one file of HTML, which asks nobody for anything."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from .. import stats, units
from . import charts, maps, recorder, svg, words
from .style import STYLE

MARK = b"<!DOCTYPE html>\n<!-- blkmig report -->\n"
"""What every report begins with, so that nothing else is replaced by one."""

NOTHING_FROM_ELSEWHERE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
ROUNDS_SHOWN = 40
"""Of more rounds than that, the table has the first and the last ones."""


def page(recorded: recorder.Recorder) -> bytes:
    """Return the page of a migration that has ended, well or not."""
    parts = [
        _header(recorded),
        _section("", _figures(words.figures(recorded))),
        _section("What was left", charts.left(recorded)),
        _section("Speed", charts.speed(recorded)),
        _section("The pause", charts.pause(recorded)),
        _section("Rounds", charts.rounds(recorded) + _rounds(recorded)),
        _section("Disks", _disks(recorded)),
        _section("What it was set to", _settings(recorded)),
    ]
    title = svg.escape(f"{words.title(recorded)}: {recorded.name}")
    text = (
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_ELSEWHERE}">'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body><main>'
        f"{''.join(parts)}</main></body></html>\n"
    )
    return MARK + text.encode("utf-8", "backslashreplace")


def _section(title: str, inner: str) -> str:
    """Return a section, and nothing if there is nothing in it."""
    heading = f"<h2>{svg.escape(title)}</h2>" if title else ""
    return f"<section>{heading}{inner}</section>\n" if inner else ""


def _header(recorded: recorder.Recorder) -> str:
    way = "sent to" if recorded.direction == "outgoing" else "received from"
    began = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(recorded.began_at))
    said = "".join(f"<p>{svg.escape(sentence)}</p>" for sentence in words.sentences(recorded))
    return (
        f'<header class="{words.css(recorded)}"><h1><b>{words.title(recorded)}</b>: {way} {svg.escape(recorded.name)}'
        f'</h1>{said}<p class="soft">began {began}</p></header>\n'
    )


def _figures(shown: Sequence[tuple[str, str]]) -> str:
    if not shown:
        return ""
    inner = "".join(f"<div><dt>{svg.escape(what)}</dt><dd>{svg.escape(value)}</dd></div>" for what, value in shown)
    return f'<dl class="figures">{inner}</dl>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, css: str = "") -> str:
    head = "".join(f"<th>{svg.escape(each)}</th>" for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{svg.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _rounds(recorded: recorder.Recorder) -> str:
    found = recorded.rounds
    if not found:
        return ""
    half = ROUNDS_SHOWN // 2
    shown = [*found] if len(found) <= ROUNDS_SHOWN else [*found[:half], *found[-half:]]
    is_known = recorded.direction == "outgoing"
    rows = [_round(each, is_last=is_known and each is found[-1], is_known=is_known) for each in shown]
    heads = ["round", "on the wire", "time", "speed", *(["to send", "dirtied meanwhile"] if is_known else [])]
    left_out = f", the first and the last {half}" if len(found) > ROUNDS_SHOWN else ""
    return f"<details><summary>All figures{left_out}</summary>{_table(heads, rows)}</details>"


def _round(each: stats.RoundStatistics, *, is_last: bool, is_known: bool) -> list[str]:
    name = "bulk" if not each.number else "last pass" if is_last else str(each.number)
    row = [name, units.format_size(each.transferred), units.format_duration(each.seconds)]
    row.append(units.format_rate(each.bandwidth))
    return row + [units.format_size(nbytes) for nbytes in (each.dirty_bytes, each.redirtied_bytes) if is_known]


def _disks(recorded: recorder.Recorder) -> str:
    found = recorded.disks()
    if not found:
        return ""
    is_one_of_many = len(found) > maps.MANY_DISKS
    legend = svg.legend(maps.LEGEND) if recorded.maps else ""
    shown = "".join(_disk(recorded, disk, is_one_of_many=is_one_of_many) for disk in found)
    return legend + (f'<div class="many">{shown}</div>' if is_one_of_many else shown)


def _disk(
    recorded: recorder.Recorder, disk: stats.SentDiskStatistics | stats.DiskStatistics, *, is_one_of_many: bool
) -> str:
    said = [svg.size(disk.size or 0), units.counted(disk.blocks, "block")]
    said += [f"{disk.resent_blocks} again"] if disk.resent_blocks else []
    said += [units.counted(disk.packs, "pack")] if disk.packs else []
    said += ["verified"] if isinstance(disk, stats.DiskStatistics) and disk.verified else []
    strip = ""
    if disk.name in recorded.maps:
        nbytes = disk.passed_bytes if isinstance(disk, stats.SentDiskStatistics) else disk.size or 0
        strip = maps.disk_map(recorded.maps[disk.name], -(-nbytes // units.MiB), is_one_of_many=is_one_of_many)
    facts = svg.escape(", ".join(said))
    name = svg.escape(disk.name or "(no name)")
    return f'<div class="disk"><p><span>{name}</span><span class="soft">{facts}</span></p>{strip}</div>'


def _settings(recorded: recorder.Recorder) -> str:
    rows = [(name.replace("_", " "), _shown(value)) for name, value in recorded.settings.items()]
    return _table(("setting", "value"), rows, css="settings") if rows else ""


def _shown(value: object) -> str:
    """Return a setting as people say it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
