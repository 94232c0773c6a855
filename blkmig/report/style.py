# SPDX-License-Identifier: GPL-2.0-or-later
"""How a report looks: on a phone and on a wide screen, in the reader's light or dark."""

COLOURS = {
    "left": "left",
    "dirty": "dirty",
    "rounds": "rounds",
    "pause": "pause",
    "last": "pause",
    "rest": "wait",
    "limit": "ink",
    "data": "left",
    "empty": "empty",
    "ahead": "ahead",
    "heat1": "h1",
    "heat2": "h2",
    "heat3": "h3",
    "heat4": "h4",
}
"""What a part of a picture, and its square in a legend, are painted with."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1d2327; --soft: #5c666d; --line: #d9dedf;
  --left: #3b78c4; --dirty: #c4500b; --pause: #b0307a; --wait: #7a5cc0; --empty: #e9ecec; --ahead: #fff;
  --rounds: #fbeee6;
  --h1: #f2b134; --h2: #ea7a1c; --h3: #d23c1e; --h4: #8c1230; --good: #1c7a44; --bad: #b3261e; --unsure: #8a6100; }
@media (prefers-color-scheme: dark) { :root { --page: #14181b; --card: #1c2226; --ink: #e7ebed; --soft: #9aa5ac;
  --line: #343d43; --left: #6ea6ec; --dirty: #ff9a4d; --pause: #f07ab8; --wait: #b39af0; --empty: #313a40;
  --rounds: #2e2824;
  --ahead: #14181b; --h1: #ffd773; --h2: #ff9d47; --h3: #ff6247; --h4: #ff2d78; --good: #4cc27d; --bad: #ff7a70;
  --unsure: #e2b040; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
p { margin: .25rem 0; overflow-wrap: anywhere; }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem;
  margin: 0 0 1rem; }
header { border-left-width: .5rem; }
header.good { border-left-color: var(--good); } header.good b { color: var(--good); }
header.bad { border-left-color: var(--bad); } header.bad b { color: var(--bad); }
header.unsure { border-left-color: var(--unsure); } header.unsure b { color: var(--unsure); }
.soft, .legend, .x, .y { color: var(--soft); font-size: .8125rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem 1rem; margin: 0; }
.figures dt { color: var(--soft); font-size: .8125rem; }
.figures dd { margin: 0; font-size: 1.125rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.legend span { display: inline-block; margin-right: 1rem; }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .375rem;
  vertical-align: -1px; border: 1px solid var(--line); }
.chart { display: grid; grid-template-columns: 4.5rem 1fr; grid-template-rows: 11rem auto; column-gap: .5rem; }
.y { display: flex; flex-direction: column; justify-content: space-between; text-align: right; white-space: nowrap; }
.x { display: flex; justify-content: space-between; }
.chart .x { grid-column: 2; } .even span { flex: 1 1 0; }
svg { display: block; width: 100%; height: 100%; }
svg.plot { border-left: 1px solid var(--line); border-bottom: 1px solid var(--line); min-height: 0; }
svg * { vector-effect: non-scaling-stroke; }
.area { fill: var(--left); fill-opacity: .3; stroke: var(--left); stroke-width: 1.5; }
.line-dirty { fill: none; stroke: var(--dirty); stroke-width: 1.5; }
.band-dirty { fill: var(--rounds); } .band-pause { fill: var(--pause); fill-opacity: .6; }
.band-waiting { fill: var(--wait); fill-opacity: .35; }
.strip { height: 3rem; border: 1px solid var(--line); }
.disk { margin: 0 0 .625rem; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); column-gap: 1.5rem; }
.disk p { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin: 0; }
.map { height: .875rem; border: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .125rem .75rem .125rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: normal; } th:first-child, td:first-child { text-align: left; }
.settings th:last-child { text-align: left; }
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); }
@media print { section, header { break-inside: avoid; } }
"""

STYLE += "".join(f".c-{part} {{ fill: var(--{ink}); background: var(--{ink}); }}\n" for part, ink in COLOURS.items())
