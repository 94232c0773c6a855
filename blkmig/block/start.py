# SPDX-License-Identifier: GPL-2.0-or-later
"""What the sending side says of the disks before their first block: in START, and in the parts right after it.

::

    blkmig    START: TABLE, EOS
    block     START: EOS, whose marks announce a description    parts: EOS words with the sizes

A QEMU as the target is told nothing beyond its own words.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import _core
from . import device, sizes, table, wire


def table_of(
    bmds_list: Sequence[device.BlkMigDevState], empty: Sequence[str], *, shared_base: bool, resumes: bool = False
) -> tuple[table.TableDisk, ...]:
    """Return the table of the disks that were taken into use, and of those that are named because they are `empty`."""
    sent = [(bmds.name, bmds.geometry.size, bmds.dirty_bitmap.granularity) for bmds in bmds_list]
    named = [(name.encode("utf-8", "surrogateescape"), 0, _core.BLOCK_SIZE) for name in empty]
    return tuple(table.TableDisk(*each, shared_base, resumes) for each in (*sent, *named))


def marks_of(bmds_list: Sequence[device.BlkMigDevState], empty: Sequence[str]) -> int:
    """Return the marks for a description of these disks."""
    return wire.description_marks(len(bmds_list), len(empty))


def sizes_of(bmds_list: Sequence[device.BlkMigDevState], empty: Sequence[str]) -> list[bytes]:
    """Return the EOS words that say how large these disks are."""
    sent = [(bmds.name, bmds.geometry.size) for bmds in bmds_list]
    return sizes.say([*sent, *((name.encode("utf-8", "surrogateescape"), 0) for name in empty)])
