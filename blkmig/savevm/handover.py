# SPDX-License-Identifier: GPL-2.0-or-later
"""What two blkmigs say at the end of a migration, so that its disks have one owner at any moment.

::

    END n      the source    EXTRA of kind 9    u32 n, then the description: the image is whole
    READY n    the target    0x8003             it is on stable storage, and I could take it
    COMMIT n   the source    EXTRA of kind 2    u32 n, u8 kind: it is yours
    DONE n     the target    0x8007             it is mine; u32 n, then as REPLY the disks that could get no name

Each of the first and third is the only record of a PART. END and FLUSH are counted together, so a READY answers one.
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, Final, NamedTuple

from .. import errors
from . import vmdescription

_NUMBER: Final = struct.Struct(">I")
_COMMIT: Final = struct.Struct(">IB")


class Kind(enum.IntEnum):
    """What COMMIT hands over."""

    COPY = 0
    """The disks stay in use at the source as well: a copy of them."""

    MOVE = 1
    """The disks: the source does not use them any more."""

    VM = 2
    """The disks of a VM that a QEMU moves: they are the target's once that QEMU hands over."""


class End(NamedTuple):
    """That the image is whole, and what the source says of it, as at the end of the stream."""

    number: int
    description: dict[str, Any] | None
    state: vmdescription.State

    @staticmethod
    def encode(number: int, description: dict[str, Any]) -> bytes:
        """Return the body of the record."""
        text = json.dumps(description, separators=(",", ":")).encode()
        return _NUMBER.pack(number) + vmdescription.seal(text)


class Commit(NamedTuple):
    """That the image of END `number` is the target's."""

    number: int
    kind: Kind

    def encode(self) -> bytes:
        """Return the body of the record."""
        return _COMMIT.pack(self.number, self.kind)


def parse_end(body: bytes, position: int) -> End:
    """Return what an END says. Raises :class:`~blkmig.errors.StreamError` for what no blkmig says."""
    if len(body) < _NUMBER.size:
        raise errors.StreamError(f"END of {len(body)} bytes", position=position)
    state, description = vmdescription.parse_vmdescription(body[_NUMBER.size :])
    return End(_NUMBER.unpack_from(body)[0], description, state)


def parse_commit(body: bytes, position: int) -> Commit:
    """Return what a COMMIT says; raises as `parse_end`."""
    number, kind = _COMMIT.unpack(body) if len(body) == _COMMIT.size else (0, len(Kind))
    if kind >= len(Kind):
        raise errors.StreamError("COMMIT is damaged: nothing was handed over", position=position)
    return Commit(number, Kind(kind))
