# SPDX-License-Identifier: GPL-2.0-or-later
"""What the model of a stream passes over: sections that are not disks, by their own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model import Reader


def skip_ram(reader: Reader, ignore_shared: bool) -> None:
    """Pass over one payload of the section `ram`, of pages of 4 KiB."""
    while True:
        word = reader.unpack(">Q")
        left, flags = word & ~0xFFF, word & 0xFFF
        if flags == 0x04:
            while left:
                reader.counted()
                left -= reader.unpack(">Q")
                reader.take(8 * ignore_shared)
        elif flags == 0x10:
            return
        elif flags != 0x200:
            if not flags & 0x20:
                reader.counted()
            reader.take(page_nbytes(reader, flags & ~0x20))


def page_nbytes(reader: Reader, kind: int) -> int:
    """Return how many bytes a page has in the stream, whose length may stand before it."""
    if kind == 0x40:
        assert reader.unpack(">B") == 1
        return reader.unpack(">H")
    return reader.unpack(">I") if kind == 0x100 else {0x02: 1, 0x08: 4096}[kind]


def skip_dirty_bitmap(reader: Reader) -> None:
    """Pass over one payload of the section `dirty-bitmap`."""
    flags = 0
    while not flags & 1:
        flags = reader.unpack(">B")
        assert not flags & 0x80
        for named in (8, 4):
            if flags & named:
                reader.counted()
        if flags & 0x10:
            reader.take(5)
        elif flags & 0x40:
            reader.take(12)
            if not flags & 2:
                reader.take(reader.unpack(">Q"))
