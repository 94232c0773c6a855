# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of one block at the target, and what follows from it for a copy of the block: arithmetic alone.

The target says digests of pieces. First the whole block is one piece; if it differs, it is asked for again in pieces of
64 KiB, and those of them that differ in pieces of 4 KiB::

    |                         1 MiB, differs                        |
    | = | = | = | = | = | ≠ | = | = | = | = | = | = | = | = | = | = |       64 KiB each
                        |=≠==============|                                   4 KiB each: this one goes

Finer pieces are not asked for where that does not pay: where the target holds nothing but zeros, where what differs
cannot be read there, and where nearly all of the block differs.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .. import _core
from ..savevm import digestwords
from . import askwords

WHOLE_SIXTEENTHS: Final = 15
"""A block goes whole from so many sixteenths of it on that differ. Less would add to what is sent: of a run of 1 MiB
that begins anywhere, most blocks have a part."""

Hash = Callable[[memoryview], bytes]

_COARSE, _FINE, _FINEST = askwords.SHIFTS
_NEXT: Final = {_COARSE: _FINE, _FINE: _FINEST}


class Verdict(enum.Enum):
    """What becomes of a block."""

    SAME = enum.auto()
    """The target holds it."""

    FINER = enum.auto()
    """More is to be asked; the copy is not used."""

    PARTS = enum.auto()
    """The pieces that differ go as a pack, the rest is the same."""

    WHOLE = enum.auto()
    """All of it goes."""


@dataclasses.dataclass(slots=True)
class _Piece:
    offset: int
    nbytes: int
    digest: digestwords.Piece = digestwords.UNREAD


class ComparedBlock:
    """Block number `block` of a disk, which has `nbytes` from `offset` on: it does not start early."""

    def __init__(self, block: int, offset: int, nbytes: int, *, is_again: bool = False) -> None:
        self.block = block
        self.offset = offset
        self.nbytes = nbytes
        self.is_again = is_again
        """It is compared once more, because the link was lost."""

        self.shift = _COARSE
        """How fine the pieces are that were asked for last, or are to be asked for."""

        self.verdict: Verdict | None = None
        """What becomes of the copy that was read last; None until it was judged."""

        self._pieces = [_Piece(offset, nbytes)]
        self._asked = self._pieces  # those of them whose digests are awaited, or came last
        self._differing: list[_Piece] = []

    def ranges(self) -> Iterator[askwords.Range]:
        """Yield the ranges that are to be asked for, each as its offset and the number of pieces."""
        start = stop = count = 0
        for piece in self._asked:
            if count and piece.offset != stop:
                yield start, count
                count = 0
            start = start if count else piece.offset
            stop, count = piece.offset + piece.nbytes, count + 1
        yield start, count

    @property
    def asked(self) -> int:
        """Return how many pieces that are."""
        return len(self._asked)

    def take(self, digests: Sequence[digestwords.Piece]) -> None:
        """Take note of the answer: what the target holds in each of them."""
        for piece, digest in zip(self._asked, digests, strict=True):
            piece.digest = digest

    def judge(self, copy: memoryview, hash_of: Hash, *, is_zero: bool) -> Verdict:
        """Say what becomes of a `copy` of the block, which is nothing but zeros if `is_zero`.

        It is compared with all that is known, so it does not matter what earlier copies were like.
        """
        self._differing = [piece for piece in self._pieces if not self._is_same(piece, copy, hash_of)]
        if not self._differing:
            return Verdict.SAME
        if is_zero:
            return Verdict.WHOLE  # a record without payload
        if self.shift == _COARSE:
            return Verdict.FINER if _can_be_split(self._pieces[0]) else Verdict.WHOLE
        if 16 * sum(piece.nbytes for piece in self._differing) >= WHOLE_SIXTEENTHS * self.nbytes:
            return Verdict.WHOLE
        return Verdict.FINER if self.shift == _FINE and any(map(_can_be_split, self._differing)) else Verdict.PARTS

    def split(self) -> None:
        """Have what differs be asked for in finer pieces, after the verdict FINER."""
        self.shift, self.verdict = _NEXT[self.shift], None
        self._asked = []
        pieces: list[_Piece] = []
        for piece in self._pieces:
            finer = _split(piece, 1 << self.shift) if piece in self._differing and _can_be_split(piece) else [piece]
            pieces += finer
            self._asked += finer if finer[0] is not piece else []
        self._pieces = pieces

    def differing(self) -> list[askwords.Range]:
        """Return what differs, neighbours together, after the verdict PARTS."""
        return _joined((piece.offset, piece.nbytes) for piece in self._differing)

    def same(self) -> list[askwords.Range]:
        """Return what does not differ, after the verdict PARTS."""
        return _joined((piece.offset, piece.nbytes) for piece in self._pieces if piece not in self._differing)

    def _is_same(self, piece: _Piece, copy: memoryview, hash_of: Hash) -> bool:
        start = piece.offset - self.offset
        view = copy[start : start + piece.nbytes]
        if piece.digest == digestwords.ZEROS:
            return _core.buffer_is_zero(view)
        return piece.digest is not digestwords.UNREAD and hash_of(view) == piece.digest


def _can_be_split(piece: _Piece) -> bool:
    """Return whether finer digests of a piece may show that a part of it is the same."""
    return bool(piece.digest) and piece.nbytes > askwords.GRANULE


def _split(piece: _Piece, nbytes: int) -> list[_Piece]:
    stop = piece.offset + piece.nbytes
    return [_Piece(start, min(nbytes, stop - start)) for start in range(piece.offset, stop, nbytes)]


def _joined(ranges: Iterator[askwords.Range]) -> list[askwords.Range]:
    found: list[askwords.Range] = []
    for offset, nbytes in ranges:
        if found and sum(found[-1]) == offset:
            offset, nbytes = found[-1][0], found.pop()[1] + nbytes
        found.append((offset, nbytes))
    return found
