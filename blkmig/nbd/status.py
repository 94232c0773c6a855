# SPDX-License-Identifier: GPL-2.0-or-later
"""BLOCK_STATUS: one question to a server, and what its reply says about a range."""

from __future__ import annotations

import array
import ctypes
from collections.abc import Iterable, Iterator
from typing import Any

from . import _libnbd
from . import handle as nbd_handle


def ask(handle: nbd_handle.NbdHandle, context: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Return the (length, flags) of the extents in the reply about [start, stop), of any length. Blocks."""
    wanted = context.encode()
    entries = array.array("I")

    def collect(_data: Any, name: bytes, _offset: int, pairs: Any, count: int, _error: Any) -> int:
        if name == wanted and not entries:
            entries.frombytes(ctypes.string_at(pairs, 4 * count))
        return 0

    callback = _libnbd.ExtentCallback(_libnbd.EXTENT_FUNCTION(collect), None, None)
    handle.run("nbd_aio_block_status", stop - start, start, callback, _libnbd.NO_COMPLETION, 0, keep=callback)
    return zip(entries[0::2], entries[1::2], strict=True)


def clip(pairs: Iterable[tuple[int, int]], position: int, start: int, stop: int) -> list[tuple[int, int]]:
    """Return the (length, flags) in `pairs`, which begin at `position`, that lie in [start, stop)."""
    clipped = []
    for length, flags in pairs:
        end = position + length
        is_inside = start <= position and end <= stop  # but for the first and the last one, each is
        inside = length if is_inside else min(end, stop) - max(position, start)
        if inside > 0:
            clipped.append((inside, flags))
        position = end
    return clipped


def joined(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the (length, flags) of `extents` with neighbours of equal flags made one."""
    length, flags = 0, -1
    for more, their_flags in extents:
        if their_flags != flags:
            if length:
                yield length, flags
            length, flags = 0, their_flags
        length += more
    if length:
        yield length, flags
