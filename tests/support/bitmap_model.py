# SPDX-License-Identifier: GPL-2.0-or-later
"""The slow, obvious bitmap, and what tests of the real one share."""

from __future__ import annotations

from blkmig import _core


def walk(bitmap: _core.Bitmap) -> list[int]:
    bits, bit = [], bitmap.find_next_set()
    while bit >= 0:
        bits.append(bit)
        bit = bitmap.find_next_set(bit + 1)
    return bits
