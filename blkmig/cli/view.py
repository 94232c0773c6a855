# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration as a terminal shows it: a few lines about the whole, and one for each disk, with a map of it.

::

    sending 3 disks, 30.0 GiB                                                  what it is
    1:12  bulk 34 %  5.0 GiB left  2:20 to go                                  how far it is
    ━━━━━━━━━━━━━━━━━━━━━━━━───────────────────────────────────────────────
    sent 112.5 MiB/s  writers 30.0 MiB/s  link 118.0 MiB/s                     how fast
    round 3: 1.2 GiB in 10.2 s, 118 MiB/s; 300 MiB dirty again                 the last rounds

    vda   10.0 GiB  100 %  ████▓▓░░░░████                                      the disks
    vdb   10.0 GiB   12 %  ██············

It is laid out by the library ``rich``, into memory: nothing here writes, so nothing here fails with a terminal. What
does not fit is summed up; no line is as wide as the terminal, because some begin a new line then.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .. import diskmap, stats, texts, units
from . import disklines, wording

ROUNDS = 3
ROOMY_LINES = 16
"""With so many lines there is room for an empty one, and for what the map's signs mean."""

Statistics = stats.OutgoingStatistics | stats.IncomingStatistics
STYLED = re.compile(r"\x1b\[[0-9;]*m")
Line = tuple[str, str]
"""A text and how it looks, in the words of ``rich``."""


@dataclasses.dataclass(slots=True)
class Seen:
    """What is known of a migration. Its thread sets the fields, each by one assignment; the drawing thread reads."""

    status: stats.Status = "none"
    status_since: float = 0.0
    told: tuple[float, float] = (0.0, 0.0)
    """When the last event came: seconds after the migration began, and by the clock of whoever draws."""

    progress: stats.Progressed | stats.Received | None = None
    rounds: tuple[stats.RoundEnded, ...] = ()
    not_converging: stats.NotConverging | None = None
    lost: str = ""
    """Why the link is lost, while it is."""

    statistics: Statistics | None = None
    maps: Mapping[str, diskmap.DiskMap] = dataclasses.field(default_factory=dict)


class Screen:
    """Lays out what was seen. Raises ImportError without ``rich``."""

    def __init__(self, encoding: str = "utf-8") -> None:
        import rich.cells
        import rich.console
        import rich.text

        self._rich: Any = rich
        self._encoding = encoding
        self._signs = disklines.SIGNS if encoding.lower().startswith("utf") else disklines.PLAIN_SIGNS
        self._size = (0, 0)
        self._console: Any = None

    def lines(self, seen: Seen, size: tuple[int, int], *, elapsed: float, sent: float) -> tuple[list[str], list[int]]:
        """Return the lines for a terminal of `size`, columns and lines, and how many columns each has.

        It is `elapsed` seconds since the migration began, and `sent` bytes per second have gone or come of late.
        """
        columns, nlines = max(size[0] - 1, 1), max(size[1] - 1, 1)
        self._resize((columns, nlines))
        head = list(self._head(seen, columns, elapsed, sent))
        is_roomy = nlines >= ROOMY_LINES
        rows = disklines.rows_of(seen.statistics)
        room = nlines - len(head) - (2 if is_roomy else 0)
        with self._console.capture() as captured:
            for text, style in head[:nlines]:
                self._print(self._bar(seen, columns) if text is None else self._text(text, style))
            if rows and room > 0:
                if is_roomy:
                    self._print("")
                disks = disklines.chosen(rows, room)
                for line in disklines.table(self._rich, disks, seen.maps, columns, self._signs, self._shown):
                    self._print(line)
                if is_roomy and seen.maps:
                    self._print(disklines.legend(self._rich, columns, self._signs))
        lines = captured.get().split("\n")[:-1][:nlines]
        return lines, [self._rich.cells.cell_len(STYLED.sub("", line)) for line in lines]

    def _resize(self, size: tuple[int, int]) -> None:
        if size != self._size:
            self._size = size
            nowhere = io.TextIOWrapper(io.BytesIO(), self._encoding)
            self._console = self._rich.console.Console(
                file=nowhere, force_terminal=True, width=size[0], height=size[1], highlight=False, legacy_windows=False
            )

    def _print(self, what: Any) -> None:
        self._console.print(what, no_wrap=True, overflow="crop", crop=True)

    def _text(self, text: str, style: str) -> Any:
        return self._rich.text.Text(self._shown(text), style, no_wrap=True, overflow="crop")

    def _shown(self, text: str) -> str:
        """Return what can be shown of a text, as wide as it will be."""
        return texts.printable(text).encode(self._encoding, "backslashreplace").decode(self._encoding)

    def _bar(self, seen: Seen, columns: int) -> Any:
        percent = 0.0 if seen.progress is None else min(max(seen.progress.percent, 0.0), 100.0)
        done = int(percent * columns / 100)
        bar, rest = ("━", "─") if self._signs is disklines.SIGNS else ("#", "-")
        return self._text("", "").append(bar * done, "green").append(rest * (columns - done), "dim")

    def _head(self, seen: Seen, columns: int, elapsed: float, sent: float) -> Iterator[tuple[str | None, str]]:
        """Yield the lines about the whole; None is the bar."""
        yield _title(seen.statistics, columns), "bold"
        yield _state(seen, columns, elapsed), "bold cyan"
        yield None, ""
        if isinstance(seen.progress, stats.Progressed):
            yield _rates(seen.progress, sent, columns), ""
            yield _pause(seen, seen.progress, columns, elapsed), "magenta" if seen.status == "device" else ""
        for ended in seen.rounds:
            yield wording.rounds([ended], columns), "dim"
        if seen.lost:
            yield f"the link is lost: {seen.lost}", "bold red"
        if seen.not_converging is not None:
            yield wording.not_converging(seen.not_converging, columns), "bold yellow"


def _title(found: Statistics | None, columns: int) -> str:
    if found is None:
        return "starting"
    way = "sending" if isinstance(found, stats.OutgoingStatistics) else "receiving"
    rows = disklines.rows_of(found)
    if not rows:
        return way
    count = "1 disk" if len(rows) == 1 else f"{len(rows)} disks"
    size = f", {units.format_size(sum(row.size for row in rows))}" if all(row.size for row in rows) else ""
    section = f"section {found.format}" if found.format else ""
    return wording.fit([(0, f"{way} {count}{size}"), (1, section)], columns)


def _state(seen: Seen, columns: int, elapsed: float) -> str:
    progress = seen.progress
    if seen.status not in ("active", "device") or progress is None:
        return wording.fit([(1, wording.clock(elapsed)), (0, seen.status)], columns)
    if isinstance(progress, stats.Received):
        return wording.receiving(progress, columns, elapsed=elapsed)
    return wording.how_far(progress, columns, elapsed)


def _rates(progress: stats.Progressed, sent: float, columns: int) -> str:
    rates = {"sent": sent, "writers": progress.dirty_rate, "link": progress.bandwidth, "disks": progress.disk_rate}
    told = [f"{name} {units.format_rate(rate)}" for name, rate in rates.items() if rate or name == "sent"]
    return wording.fit(list(enumerate(told)), columns)


def _pause(seen: Seen, progress: stats.Progressed, columns: int, elapsed: float) -> str:
    found = seen.statistics
    limit = found.downtime_limit if isinstance(found, stats.OutgoingStatistics) else 0.0
    limited = f"limit {units.format_duration(limit)}" if limit else ""
    if seen.status == "device":
        held = units.format_duration(max(elapsed - seen.status_since, 0.0))
        return wording.fit([(0, f"pause: the writers are held, {held}"), (1, limited)], columns)
    expected = progress.expected_downtime
    said = "pause: not known yet" if expected is None else f"pause: {units.format_duration(expected)} if it began now"
    return wording.fit([(0, said), (1, limited)], columns)
