# SPDX-License-Identifier: GPL-2.0-or-later
"""EXTRA: the one record of a section ``blkmig`` for all that is rare, and has a body of its own.

::

    u64 kind << 9 | 100     what it is
    u32 n                   bytes that follow, at most 1 MiB
    n bytes                 the body: its kind says how to read it

A source writes a kind only if the target's HELLO has offered the ability that goes with it. A receiver gives
`BlockLoadHandlers` a function for each kind that it takes; any other one is refused before its body is read.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from typing import Final

from .. import _core, channel, errors
from . import wire

MAX_BYTES: Final = 1 << 20
"""Bytes of a body at most: nobody allocates more, whatever a stream says."""

_HEAD: Final = struct.Struct(">QI")
_FLAGS: Final = (1 << _core.SECTOR_BITS) - 1


class ExtraKind(enum.IntEnum):
    """The numbers on the wire, whether this blkmig takes such records or not."""

    SESSION = 1
    COMMIT = 2
    ASK = 3
    SAME = 4
    PROOF = 5
    PROVEN = 6
    CHECKS = 7
    ZEROS = 8
    END = 9
    ZSTD = 10


OnExtra = Callable[[bytes, int], None]
"""Given the body of a record and its position in the stream, take it or raise. It may block."""


def extra(kind: int, body: bytes) -> bytes:
    """Return the record of this kind."""
    assert len(body) <= MAX_BYTES
    return _HEAD.pack(kind << _core.SECTOR_BITS | wire.FLAG_EXTRA, len(body)) + body


def name_of(kind: int) -> str:
    """Return what messages call a record of this kind, whatever a stream says."""
    try:
        return f"EXTRA {ExtraKind(kind).name}"
    except ValueError:
        return f"EXTRA of the unknown kind {kind}"


def get_body(f: channel.InputQEMUFile, kind: int, position: int) -> bytes:
    """Read the rest of a record, whose first word stands at `position`.

    Raises :class:`~blkmig.errors.StreamError` for a length that no blkmig writes, before anything is allocated.
    """
    nbytes = f.get_be32()
    if nbytes > MAX_BYTES:
        raise errors.StreamError(f"{name_of(kind)} has {nbytes} bytes, and may have {MAX_BYTES}", position=position)
    return f.get_buffer(nbytes)


def get_extra(f: channel.InputQEMUFile, kinds: Mapping[int, OnExtra]) -> None:
    """Read one record that stands behind the stream's end, where there are none but those of `kinds`, and take it."""
    position = f.position
    word = f.get_be64()
    kind = word >> _core.SECTOR_BITS
    if word & _FLAGS != wire.FLAG_EXTRA or kind not in kinds:
        raise errors.StreamError("what comes behind the stream's end is no proof", position=position)
    kinds[kind](get_body(f, kind, position), position)
    f.payload_came()
