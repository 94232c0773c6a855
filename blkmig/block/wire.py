# SPDX-License-Identifier: GPL-2.0-or-later
"""What both ends of a section of disks agree on beyond QEMU's own words, which are in `_core`.

The section is called ``block``, as QEMU knows it, or ``blkmig``, between two blkmigs that have found each other. Both
have the same records; ``blkmig`` has more, with flags of their own.

A QEMU takes the word that ends a section, EOS, by its flag and ignores the number above it. There a blkmig says what
another blkmig may want to know at the start, in the EOS of the first section::

    bit 0        SHARES_PAGES    payloads are pages of a file, on this machine: a hint, which changes no byte
    bit 1        IS_DESCRIBED    a sealed description ends the stream
    bits 2-11                    how many disks that will name which have bytes
    bits 12-21                   how many disks that will name which have none

Later EOS words, without the first two of these marks, say how large the disks are: see `sizes`. Those with the second
one, and what it stands for again, say from bit 22 on what only the disks' bases hold: see `basewords`.
"""

from __future__ import annotations

from typing import Final, Literal

from .. import errors

Format = Literal["block", "blkmig"]
"""The two sections, by their name on the wire."""

FORMATS: Final[tuple[Format, ...]] = ("block", "blkmig")

FLAG_PACK: Final = 0x10
"""Several extents of one disk, their payloads behind."""

FLAG_TABLE: Final = 0x20
"""The disks of the stream, first of all."""

FLAG_FLUSH: Final = 0x40
"""Bring everything to stable storage, and answer READY with this number."""

FLAG_BARRIER: Final = 0x80
"""All payloads before this belong to the barrier of this number, which is acknowledged when they are stored."""

FLAG_EXTRA: Final = 0x100
"""Something rare: the number is its kind, its body is behind. See `extras`."""

SHARES_PAGES = 1
IS_DESCRIBED = 2

COUNT_SHIFT = 2
EMPTY_SHIFT = 12
COUNT_MASK = 0x3FF
BASE_SHIFT = 22

MAX_DISKS = 256
"""Names of disks in one stream; a damaged stream must not make up any number of them."""


def description_marks(disks: int, empty: int) -> int:
    """Return the marks of a stream that ends with a sealed description of so many disks."""
    if disks > COUNT_MASK or empty > COUNT_MASK:
        raise errors.ParameterError(f"a stream carries at most {COUNT_MASK} disks, not {disks + empty}")
    return IS_DESCRIBED | disks << COUNT_SHIFT | empty << EMPTY_SHIFT


def described_disks(marks: int) -> tuple[int, int]:
    """Return how many disks the description that `marks` announce will name: those with bytes, those without."""
    return marks >> COUNT_SHIFT & COUNT_MASK, marks >> EMPTY_SHIFT & COUNT_MASK
