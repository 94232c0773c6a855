# SPDX-License-Identifier: GPL-2.0-or-later
"""Checksums of payloads, for a link that leaves this machine: CHECKS right before each block or pack with a payload.

::

    EXTRA CHECKS   u64 XXH3-64 of the payload that follows, with the place of its first byte as the seed

The seed is the sector of a block, and the first offset of a pack. A source hashes its private copy before that leaves,
and a receiver hashes what has come before it stores any of it. TCP's own checksum misses one damaged segment in 65,536,
and sees nothing of what a broken network card or a proxy does. Against somebody who means to change what is sent,
nothing of this helps.
"""

from __future__ import annotations

import struct
from typing import Final

from .. import errors
from . import extras

BODY: Final = struct.Struct(">Q")


def of(payload: bytes | memoryview, seed: int) -> int:
    """Return the checksum of a payload."""
    import xxhash  # here: who sends or receives within a machine need not wait for it

    return xxhash.xxh3_64_intdigest(payload, seed)


def record(payload: bytes | memoryview, seed: int) -> bytes:
    """Return the record that goes before the payload."""
    return extras.extra(extras.ExtraKind.CHECKS, BODY.pack(of(payload, seed)))


class Expected:
    """What a receiver has been told of the payload that comes next. All disks of a stream share one."""

    def __init__(self) -> None:
        self.is_on = False
        """Payloads have checksums, from the first CHECKS on."""

        self._value: int | None = None

    def take(self, body: bytes, position: int) -> None:
        """Take the body of a CHECKS. Raises :class:`~blkmig.errors.StreamError` for what is none."""
        if len(body) != BODY.size or self._value is not None:
            raise errors.StreamError("CHECKS is not followed by a payload, or is none", position=position)
        self.is_on = True
        (self._value,) = BODY.unpack(body)

    def forget(self) -> None:
        """Expect nothing: the link was lost, maybe right behind a CHECKS."""
        self._value = None

    def check(self, payload: bytes | memoryview, seed: int, *, uri: str, device: str, offset: int) -> None:
        """Raise :class:`~blkmig.errors.DamagedOnTheWay` unless `payload` is what was said of it."""
        value, self._value = self._value, None
        if value is None or of(payload, seed) != value:
            raise errors.DamagedOnTheWay("receiving", uri=uri, device=device, offset=offset)
