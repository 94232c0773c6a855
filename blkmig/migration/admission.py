# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks of a table the receiver takes: the targets of all are opened, and the source gets one answer for all.

Every disk is tried, so that everything that stands against the migration is told at once. Nothing was written by then;
what was made is removed when the migration fails, as after any other error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import block, errors, savevm
from . import farewell, heartbeat
from . import targets as load_targets

Open = Callable[[str, int], block.BlkLoadDevice]


def admit(
    table: Sequence[block.TableDisk],
    position: int,
    targets: load_targets.TargetSet,
    open_device: Open,
    loader: savevm.LoadVM,
    beats: heartbeat.Heartbeat,
) -> dict[bytes, block.BlkLoadDevice]:
    """Open the target of each disk of the table at `position`, reply, and return the targets by name. Blocks.

    A disk of no bytes needs no target. Raises the error of the first disk that is refused, with notes for the others.
    """
    admitted: dict[bytes, block.BlkLoadDevice] = {}
    refused: list[tuple[int, errors.MigrationError]] = []
    with beats:
        for index, entry in enumerate(table):
            if not entry.size and not targets.is_wanted(entry.label):
                continue
            beats.done = index
            beats.text = f"the target of disk {entry.label!r} is opened ({index + 1} of {len(table)})"
            try:
                admitted[entry.name] = open_device(entry.label, position)
            except errors.Cancelled:
                raise
            except errors.MigrationError as error:
                refused.append((index, error))
    if not refused:
        targets.check_names()
        targets.want_room()
        targets.begin(is_awaited=loader.is_awaited)
    loader.way_back.reply([_refusal(index, error, table[index].label) for index, error in refused])
    if refused:
        raise _as_one([error for _, error in refused])
    return admitted


def _refusal(index: int, error: errors.MigrationError, name: str) -> savevm.Refusal:
    text = str(error).removeprefix(f"disk {name!r}: ")  # the source says which disk it is
    return savevm.Refusal(index, farewell.errno_of(error), text)


def _as_one(refused: list[errors.MigrationError]) -> errors.MigrationError:
    first, *others = refused
    for error in others:
        first.add_note(f"and: {error}")
    return first
