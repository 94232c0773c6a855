# SPDX-License-Identifier: GPL-2.0-or-later
"""Zeros inside packs, in the section ``blkmig``: pieces of a pack's payload that are zeros do not travel.

::

    EXTRA ZEROS   a bit for each piece of the payload, in their order, the highest bit of a byte first; 1: zeros
    PACK          as without; of its payload only the other pieces follow
    example       pieces |aaaa|0000|bbbb|00|     body 0101 0000     what follows |aaaa|bbbb|

A piece is what an extent has between two multiples of 4,096 of its disk, so it is never more than one granule.

So in every count, and in every order, such a pack is what it would be without. What has a checksum is what follows.
A payload that goes as a frame has no ZEROS: a frame of zeros is as short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .. import _core, channel, errors
from ..disk.extents import MAX_EXTENTS, Extents
from . import extras

PIECE: Final = 4096
MOST_NBYTES: Final = (_core.BLOCK_SIZE // PIECE + 2 * MAX_EXTENTS) // 8
"""Bytes of a body at most: an extent has a part of a piece at each of its ends, at most."""

Runs = list[tuple[int, int]]
"""Places in a payload, from where to where, one behind the other."""

Check = Callable[[channel.InputQEMUFile, memoryview, int, int], None]
"""Given what came, the seed of its checksum, and where it belongs; raises if it is damaged."""

_WORD: Final = 8


def pieces(extents: Extents) -> Runs:
    """Return the pieces of the payload of a pack: its extents, cut where the disk's offset is a multiple of 4,096."""
    found: Runs = []
    at = 0
    for offset, nbytes in extents:
        end = offset + nbytes
        while offset < end:
            stop = min(end, (offset // PIECE + 1) * PIECE)
            found.append((at, at := at + stop - offset))
            offset = stop
    return found


def find(payload: memoryview, extents: Extents) -> bytes:
    """Return the body for the `payload` of a pack of `extents`; b"" if no piece of it is zeros.

    Hardly anything that is data begins with eight zeros in one of its pieces: only such a piece is looked at.
    """
    words = payload.cast("Q")
    is_cut_alike = not any((offset | nbytes) % PIECE for offset, nbytes in extents)
    if is_cut_alike and 0 not in words[:: PIECE // _WORD].tolist():
        return b""
    places = pieces(extents)
    body = bytearray(-(-len(places) // 8))
    for number, (start, stop) in enumerate(places):
        if not words[start // _WORD] and _core.buffer_is_zero(payload[start:stop]):
            body[number // 8] |= 0x80 >> number % 8
    return bytes(body) if any(body) else b""


def present(body: bytes, extents: Extents) -> Runs:
    """Return what of the payload of a pack of `extents` is no zeros by `body`."""
    runs: Runs = []
    for number, (start, stop) in enumerate(pieces(extents)):
        if body[number // 8] & 0x80 >> number % 8:
            continue
        if runs and runs[-1][1] == start:
            start = runs.pop()[0]
        runs.append((start, stop))
    return runs


def record(body: bytes) -> bytes:
    """Return the record that goes before the head of a pack, or before its CHECKS."""
    return extras.extra(extras.ExtraKind.ZEROS, body)


class Coming:
    """What a receiver has been told of the payload that comes next. All disks of a stream share one."""

    def __init__(self) -> None:
        self._body = b""

    def take(self, body: bytes, position: int) -> None:
        """Take the body of a ZEROS. Raises :class:`~blkmig.errors.StreamError` for what is none."""
        if self._body or len(body) > MOST_NBYTES or not any(body):
            raise errors.StreamError("ZEROS is not followed by a pack, or is none", position=position)
        self._body = body

    def forget(self) -> None:
        """Expect none: the link was lost, maybe right behind a ZEROS."""
        self._body = b""

    def check_none(self, position: int) -> None:
        """Raise :class:`~blkmig.errors.StreamError` if what comes is a pack whose payload is a frame."""
        if self._body:
            raise errors.StreamError("ZEROS is followed by a pack that is compressed", position=position)

    def runs(self, extents: Extents, position: int) -> Runs | None:
        """Return what follows of the payload of a pack of `extents`; None: all of it.

        Raises :class:`~blkmig.errors.StreamError` for a ZEROS that is not one of such a payload.
        """
        body, self._body = self._body, b""
        if not body:
            return None
        count = len(pieces(extents))
        if len(body) != -(-count // 8) or body[-1] & (1 << -count % 8) - 1:
            raise errors.StreamError(f"ZEROS of another payload than one of {count} pieces", position=position)
        return present(body, extents)

    def get(
        self, f: channel.InputQEMUFile, buf: _core.BlockBuffer, extents: Extents, nbytes: int, check: Check | None
    ) -> int:
        """Get the payload of a pack of `extents`, which has `nbytes`; return how much did not come.

        It is in the own bytes of `buf` then. What came is given to `check` before. Blocks; raises as `runs`.
        """
        start, runs = extents[0][0], self.runs(extents, f.position)
        came = nbytes if runs is None else sum(stop - begin for begin, stop in runs)
        if came:
            f.get_pack_payload(buf, came)
        if check is not None:
            check(f, buf.data[:came], start, start)
        if runs is not None:
            spread(buf, runs, nbytes)
        return nbytes - came


def spread(buf: _core.BlockBuffer, runs: Runs, nbytes: int) -> None:
    """Move what has come, one run behind the other, to where it belongs in the payload of `nbytes`, with zeros between.
    """
    data, end = buf.data, sum(stop - start for start, stop in runs)
    behind = nbytes
    for start, stop in reversed(runs):  # from the last one on, so that none overwrites one that waits
        begin = end - (stop - start)
        data[start:stop] = data[begin:end]
        data[stop:behind] = bytes(behind - stop)
        behind, end = start, begin
    data[:behind] = bytes(behind)
    buf.gathered()
