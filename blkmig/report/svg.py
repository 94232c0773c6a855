# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures in SVG that stretch to any width. Their words are HTML beside them, so that these do not stretch.

Coordinates are from 0 to `WIDTH` and from 0, at the bottom of a picture, to `HEIGHT`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from .. import units

WIDTH, HEIGHT = 1000.0, 100.0

STEPS = (1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1024)

Point = tuple[float, float]


def escape(text: str) -> str:
    """Return a text that is nothing but text in a page, whatever it holds."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return html.escape(shown)


def number(value: float) -> str:
    """Return a coordinate in few characters."""
    return f"{value:.1f}".removesuffix(".0")


def picture(inner: str, label: str, *, css: str = "") -> str:
    """Return an SVG with `inner`; `label` is what it shows, for those who cannot see it."""
    return (
        f'<svg class="{css}" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{inner}</svg>'
    )


def path(points: Sequence[Point], *, css: str, is_closed: bool = False) -> str:
    """Return a line through `points`; a closed one is filled down to the bottom."""
    if not points:
        return ""
    places = [f"{number(x)} {number(HEIGHT - y)}" for x, y in points]
    if is_closed:
        bottom = number(HEIGHT)
        places = [f"{number(points[0][0])} {bottom}", *places, f"{number(points[-1][0])} {bottom}Z"]
    return f'<path class="{css}" d="M{"L".join(places)}"/>'


def rect(x: float, width: float, *, css: str, y: float = 0.0, height: float = HEIGHT, title: str = "") -> str:
    """Return a rectangle from `y` up."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect class="{css}" x="{number(x)}" y="{number(HEIGHT - y - height)}" width="{number(width)}" '
        f'height="{number(height)}">{inner}</rect>'
    )


def cells(runs: Iterable[tuple[int, int, str]], ncells: int) -> str:
    """Return a strip of `ncells` cells; each run is its first cell, how many there are, and how they look."""
    by_css: dict[str, list[str]] = {}
    for first, count, css in runs:
        x, width = first * WIDTH / ncells, count * WIDTH / ncells
        by_css.setdefault(css, []).append(f"M{number(x)} 0h{number(width)}v{number(HEIGHT)}h-{number(width)}z")
    return "".join(f'<path class="{css}" d="{"".join(places)}"/>' for css, places in by_css.items())


def nice(most: float) -> float:
    """Return a round figure of bytes that is at least `most`: the top of a scale."""
    if most <= 0:
        return 1.0
    unit = 1024.0 ** math.floor(math.log(max(most, 1), 1024))
    return unit * next(step for step in STEPS if step * unit >= most)


def clock(seconds: float) -> str:
    """Return a moment as an axis shows it."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds else "0"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d} h" if hours < 48 else f"{hours / 24:.1f} days"


def chart(inner: str, label: str, *, top: str, x: Sequence[str], css: str = "x") -> str:
    """Return a picture with axes: `top` is the upper end of the vertical one, `x` are words along the other."""
    words = "".join(f"<span>{escape(each)}</span>" for each in x)
    return (
        f'<div class="chart"><div class="y"><span>{escape(top)}</span><span>0</span></div>'
        f'{picture(inner, label, css="plot")}<div class="{css}">{words}</div></div>'
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return what colours mean: each entry is how it looks, and a word."""
    return (
        '<p class="legend">'
        + "".join(f'<span><i class="{css}"></i>{escape(text)}</span>' for css, text in entries)
        + "</p>"
    )


def size(nbytes: float) -> str:
    """Return a size, without decimals where it is round."""
    return units.format_size(nbytes).replace(".0 ", " ")
