# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller hands over: disks, targets and where they go. It is looked at once, before anything is opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from .. import errors

T = TypeVar("T")


def disks_of(disks: Iterable[T]) -> list[T]:
    """Return the disks that are to be sent. Raises :class:`~blkmig.errors.ParameterError` if there are none.

    A text is no list of disks, although it can be iterated, and a mapping would lose what it maps to.
    """
    if isinstance(disks, str | bytes) or (isinstance(disks, Mapping) and disks) or not isinstance(disks, Iterable):
        raise errors.WrongType(f"the disks must be a list of disks, not {disks!r}")
    found = list(disks)
    if not found:
        raise errors.ParameterError("there is no disk to send: say at least one")
    return found
