# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver says of the pieces that a sender has asked for: the message DIGEST of the return path.

::

    DIGEST 0x8006   u32 number of the ASK
                    u32 CRC-32 of all that follows
                    { u16 kind << 14 | count, the digests } of each run of pieces, in the order in which they were asked

    kind 0          so many digests follow, of 32 bytes each
    kind 1          so many pieces are zeros; nothing follows
    kind 2          so many pieces have no digest, for they cannot be read there; nothing follows

The length of a digest is part of the section's version. Nobody chooses it, and no message says it: a peer that could
choose would choose a short one. The checksum is for what is no digest: that a piece is zeros is a claim of two bits.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from .. import errors

MIG_RP_MSG_DIGEST: Final = 0x8006

DIGEST_BYTES: Final = 32
MAX_PIECES: Final = 512
"""So many pieces one ASK asks for, at most: what two answers take fits every socket, so nobody waits to say them."""

Piece = bytes | None
"""What is said of one piece: its digest; b"" if it is zeros; None if it cannot be read."""

ZEROS: Final = b""
UNREAD: Final = None

_HEAD: Final = struct.Struct(">II")
_RUN: Final = struct.Struct(">H")
_KIND_SHIFT: Final = 14
_COUNT_MASK: Final = (1 << _KIND_SHIFT) - 1
_DIGESTS, _ZEROS, _UNREAD = range(3)

LENGTHS: Final = {MIG_RP_MSG_DIGEST: (_HEAD.size + _RUN.size, _HEAD.size + MAX_PIECES * (_RUN.size + DIGEST_BYTES))}
"""Bytes of the message, at least and at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Digest:
    """The answer to the ASK of that number."""

    number: int
    pieces: tuple[Piece, ...]
    position: int = dataclasses.field(default=0, compare=False)
    """Where it came on the return path."""

    def encode(self) -> bytes:
        """Return the message's data."""
        body = b"".join(_runs_of(self.pieces))
        return _HEAD.pack(self.number, zlib.crc32(body)) + body


def parse_digest(data: bytes, position: int) -> Digest:
    """Return what a DIGEST says. Raises :class:`~blkmig.errors.StreamError` for what no blkmig says."""
    number, checksum = _HEAD.unpack_from(data)
    if zlib.crc32(memoryview(data)[_HEAD.size :]) != checksum:
        raise _damaged("its checksum is wrong", position)
    pieces: list[Piece] = []
    at = _HEAD.size
    while at + _RUN.size <= len(data):
        (word,) = _RUN.unpack_from(data, at)
        kind, count = word >> _KIND_SHIFT, word & _COUNT_MASK
        at += _RUN.size
        if kind > _UNREAD or not 0 < count <= MAX_PIECES - len(pieces):
            raise _damaged(f"a run of {count} pieces, of kind {kind}", position)
        if kind != _DIGESTS:
            pieces += [ZEROS if kind == _ZEROS else UNREAD] * count
            continue
        end = at + count * DIGEST_BYTES
        if end > len(data):
            raise _damaged("digests are missing", position)
        pieces += [data[start : start + DIGEST_BYTES] for start in range(at, end, DIGEST_BYTES)]
        at = end
    if at != len(data):
        raise _damaged("it does not end with its last run", position)
    return Digest(number, tuple(pieces), position)


def _runs_of(pieces: Sequence[Piece]) -> Iterator[bytes]:
    for kind, run in itertools.groupby(pieces, _kind_of):
        found = list(run)
        yield _RUN.pack(kind << _KIND_SHIFT | len(found)) + b"".join(piece or b"" for piece in found)


def _kind_of(piece: Piece) -> int:
    if piece is None:
        return _UNREAD
    return _DIGESTS if piece else _ZEROS


def _damaged(what: str, position: int) -> errors.StreamError:
    return errors.StreamError(
        f"what comes back from the target is no DIGEST as it must be: {what}", position=position
    )
