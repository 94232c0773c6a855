# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of disks that a user gave, and those in a stream: a name that only one of them has is always told."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable

from .. import errors
from ..files import folder


def label_of(key: str | int) -> str:
    """Return what messages call a disk that was asked for."""
    return f"disk {key!r}" if isinstance(key, str) else f"disk number {key}"


def unknown_device(name: str, index: int, known: list[str]) -> str:
    """Say what to do about a disk that nobody expected."""
    if name:
        given = ", ".join(map(repr, known)) or "none"
        return f"the stream holds a disk {name!r}, but targets were given for {given}: say {name}=PATH"
    what = (
        "the stream holds a disk without a name, as a QEMU sends for -blockdev without a drive id"
        if index == 0
        else f"the stream holds another disk without a name: number {index} may be the image file below {index - 1}"
    )
    return f"{what}; say where it goes with --map {index}=PATH"


def check_is_said_once(name: str, index: int, wanted: Container[str | int]) -> None:
    """Raise :class:`~blkmig.errors.IncompleteMigration` if disk `name`, number `index`, has a target by each of them.

    Nothing would come for one of the two.
    """
    if name in wanted and index in wanted:
        raise errors.IncompleteMigration(
            f"{label_of(name)} is number {index} of the stream, and a target was given for each: say where it goes "
            "once, by NAME=PATH or by --map INDEX=PATH",
            missing={},
        )


def check_counts(disks: int, empty: int, wanted: list[str | int], *, takes_others: bool, position: int) -> None:
    """Raise if a stream of so many disks, and `empty` more, does not fit the `wanted` ones.

    With `takes_others` there is a place for disks that nobody has named. Raises
    :class:`~blkmig.errors.IncompleteMigration` for too few disks, :class:`~blkmig.errors.StreamError` for too many.
    """
    labels = ", ".join(repr(key) if isinstance(key, str) else f"number {key}" for key in wanted)
    total = disks + empty
    holds = f"the stream holds {total or 'no'} disk{'s' * (total != 1)}"
    if total < max(len(wanted), 1):
        why = f"{holds}, and targets were given for {len(wanted)}: {labels or 'all'}"
        raise errors.IncompleteMigration(why, missing={})
    for key in wanted:
        if isinstance(key, int) and key >= total:
            raise errors.IncompleteMigration(f"{holds}, numbered from 0, so there is no number {key}", missing={})
    if disks > len(wanted) and not takes_others:
        raise errors.StreamError(
            f"the stream holds {disks} disks, and targets were given for {len(wanted)}: {labels}; say where the others "
            "go, by NAME=PATH or --into a folder",
            position=position,
        )


def file_name(name: str, index: int) -> str:
    """Return the name of a folder's file for the disk called `name`, number `index` of the stream.

    A name from the stream must not lead out of the folder. Raises :class:`~blkmig.errors.ParameterError`.
    """
    advice = f"say where it goes, by NAME=PATH or --map {index}=PATH"
    if not name or name in (".", "..") or "/" in name or "\0" in name or not name.isprintable():
        raise errors.ParameterError(f"the stream's disk {name!r} has no name that can be a file's: {advice}")
    found = os.fsdecode(f"{name}.raw".encode("utf-8", "surrogateescape"))  # the same bytes in any locale
    if len(os.fsencode(found)) > folder.MAX_NAME_BYTES:
        raise errors.ParameterError(
            f"the stream's disk {name!r} has a name too long for a file in the folder: {advice}"
        )
    return found


def check_can_come(sizes: Iterable[str], named: Iterable[str]) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` for the size of a disk that has no target; "" is any disk."""
    known = set(named)
    for name in sizes:
        if name and name not in known:
            raise errors.ParameterError(
                f"a size is said for disk {name!r}, and no target: targets were given for "
                f"{', '.join(map(repr, sorted(known)))}"
            )


def check_targets_come(absent: Iterable[str | int], held: Iterable[str], others: str) -> None:
    """Raise :class:`~blkmig.errors.IncompleteMigration` if there are targets of disks that the stream does not hold.

    `held` are the names that are known to be in the stream; without any, messages call what is there `others`.
    """
    absent = list(absent)
    if absent:
        raise errors.IncompleteMigration(
            f"the stream holds no block of {', '.join(map(label_of, absent))}; it holds "
            f"{', '.join(map(repr, held)) or others}",
            missing={key: [] for key in absent if isinstance(key, str)},
        )


def check_have_come(sizes: Iterable[str], came: Iterable[str]) -> None:
    """Raise :class:`~blkmig.errors.IncompleteMigration` for the size of a disk that the stream does not hold.

    It was meant for another one, which has got its size from elsewhere.
    """
    known = list(dict.fromkeys(came))
    held = f"; it holds {', '.join(map(repr, known))}" if known else ""
    for name in sizes:
        if name and name not in known:
            raise errors.IncompleteMigration(
                f"a size was said for disk {name!r}, and the stream holds none of that name{held}", missing={}
            )
