# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a migration on a terminal: a line each, with a map, and one for those that do not fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .. import diskmap, stats, units
from . import wording

MAP_CELLS = 16
"""A map with fewer cells than that says little: figures make room for it."""

MOST_NAME = 24
STYLES = ("dim", "dim blue", "blue", "yellow", "bright_red", "red", "magenta")
"""How the looks of a cell are painted; see `diskmap`. The signs differ, too, for those who see no colours."""

SIGNS = "·░█▒▒▓▓"
PLAIN_SIGNS = ".-#++**"

MEANINGS = ((diskmap.DATA, "data"), (diskmap.EMPTY, "nothing to send"), (diskmap.DATA + 1, "sent again"),
            (diskmap.DATA + 4, "and again"), (diskmap.AHEAD, "not reached"))  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What is shown of one disk, or of several."""

    name: str
    size: int
    done: float | None = None
    """The part of the disk that is at the target, as it is now; None: nobody here knows."""

    moved: int = 0
    """Bytes that have come; for the end that knows no more."""

    map_blocks: int = 0
    """Blocks that bulk has passed; of a disk that comes, those that it has."""

    looks: Sequence[int] = ()
    """How the cells look, where no map says it."""

    @property
    def rank(self) -> int:
        """0 for a disk that bulk passes now, 1 for one that is written, 2 for one that waits, 3 for a done one."""
        done = self.done
        if done is None:
            return 0 if self.moved else 2
        if not self.map_blocks and self.size:
            return 2
        return 0 if self.map_blocks * units.MiB < self.size else (1 if done < 1 else 3)


def rows_of(found: stats.OutgoingStatistics | stats.IncomingStatistics | None) -> list[Row]:
    """Return the row of each disk."""
    disks: list[stats.SentDiskStatistics | stats.DiskStatistics] = []
    if found is not None:
        disks += found.disks.values()  # at once: the migration may add to them
    return [_row(disk) for disk in disks]


def _row(disk: stats.SentDiskStatistics | stats.DiskStatistics) -> Row:
    if isinstance(disk, stats.DiskStatistics):
        nblocks = -(-(disk.size or 0) // units.MiB)
        return Row(disk.name, disk.size or 0, moved=disk.blocks * units.MiB, map_blocks=nblocks)
    done = max(disk.passed_bytes - disk.dirty_bytes, 0) / disk.size if disk.size else 1.0
    return Row(disk.name, disk.size, done, map_blocks=-(-disk.passed_bytes // units.MiB))


def chosen(rows: Sequence[Row], room: int) -> list[Row]:
    """Return at most `room` rows: those with the lowest ranks, in their order; and one for all others."""
    if len(rows) <= room:
        return [*rows]
    ranked = sorted(range(len(rows)), key=lambda index: rows[index].rank)
    shown, rest = sorted(ranked[: room - 1]), sorted(ranked[room - 1 :])
    return [*(rows[index] for index in shown), _rest([rows[index] for index in rest])]


def _rest(rows: Sequence[Row]) -> Row:
    """Return the row of several disks, whose map has a cell for each of them."""
    size, moved = sum(row.size for row in rows), sum(row.moved for row in rows)
    if any(row.done is None for row in rows):
        return Row(f"{len(rows)} more", size, moved=moved)
    done = sum((row.done or 0) * row.size for row in rows) / size if size else 1.0
    looks = [(diskmap.EMPTY, diskmap.DATA + 1, diskmap.AHEAD, diskmap.DATA)[row.rank] for row in rows]
    return Row(f"{len(rows)} more", size, done, looks=looks)


def table(
    rich: Any,
    rows: Sequence[Row],
    maps: Mapping[str, diskmap.DiskMap],
    columns: int,
    signs: str,
    shown: Callable[[str], str],
) -> Iterator[Any]:
    """Yield the lines of `rows`, each of `columns` at most. `shown` says what can be shown of a name."""
    names = [shown(row.name or "(no name)") for row in rows]
    cell_len, set_size = rich.cells.cell_len, rich.cells.set_cell_size
    name_width = min(max(map(cell_len, names)), MOST_NAME, columns // 3)
    for row, name in zip(rows, names, strict=True):
        line = rich.text.Text(set_size(name, name_width), no_wrap=True, overflow="crop")
        parts = [(0, _done(row)), (1, f"{units.format_size(row.size):>10}" if row.size else " " * 10)]
        line.append("  " + wording.fit(parts, columns - name_width - MAP_CELLS - 4))
        found = maps.get(row.name)
        looks = row.looks or (list(found.looks(row.map_blocks)) if found is not None else ())
        if looks:
            line.append("  ")
            paint(line, looks, columns - line.cell_len, signs)
        yield line


def _done(row: Row) -> str:
    if row.done is None:
        return f"{units.format_size(row.moved):>10} came"
    return f"{int(row.done * 100):>3} %"  # rounded down: 100 is all of it


def paint(line: Any, looks: Sequence[int], room: int, signs: str) -> None:
    """Append a map of `room` cells at most to `line`."""
    for look, group in itertools.groupby(diskmap.coarser(looks, max(room, 1))):
        line.append(signs[look] * len(list(group)), STYLES[look])


def legend(rich: Any, columns: int, signs: str) -> Any:
    """Return the line that says what the signs of a map mean."""
    line = rich.text.Text(no_wrap=True, overflow="crop")
    for look, meaning in MEANINGS:
        if line.cell_len + len(meaning) + 4 <= columns:
            line.append(signs[look], STYLES[look])
            line.append(f" {meaning}  ", "dim")
    line.rstrip()
    return line
