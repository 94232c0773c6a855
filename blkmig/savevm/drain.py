# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading device state to the end of the stream, where nothing says how long either is.

The stream ends where a description comes whose sizes add up to the state before it, or else with the link. A source
with a return path keeps that open and waits for our SHUT: then the end is also where what came so far looks like one,
and nothing follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .. import errors
from . import vmdescription

if TYPE_CHECKING:
    from ..channel import InputQEMUFile

DRAIN_PIECE: Final = 256 << 10

SETTLE_TIME: Final = 0.1
"""Seconds that nothing may follow what looks like the final description, on a link that the source keeps open."""

IDLE_TIME: Final = 3.0
"""Seconds without a byte after which a source that keeps the link open is believed to send no description.

Machine types up to 2.2 have none, and nothing else tells that a stream of theirs is over.
"""


def drain_to_end(
    f: InputQEMUFile, already_read: int, *, is_kept_open: bool, has_footers: bool
) -> vmdescription.StreamEnd:
    """Read and drop everything to the end of the stream; blocks until it is there.

    `already_read` are the bytes of the first FULL record that the caller has read. Raises
    :class:`~blkmig.errors.TruncatedStream` if what came last is no end of a stream.
    """
    tail = vmdescription.TailFinder(already_read, has_footers=has_footers)
    while tail.end is None and not (is_kept_open and _is_silent_after(f, tail)):
        piece = f.get_some(DRAIN_PIECE)
        if not piece:
            break
        tail.feed(piece)
    end = tail.end or tail.find_here()
    if end is not None:
        return end
    if tail.ends_like_eof():
        return vmdescription.StreamEnd(tail.nbytes - 1)
    raise errors.TruncatedStream("the stream stops inside the state of the devices", position=f.position)


def _is_silent_after(f: InputQEMUFile, tail: vmdescription.TailFinder) -> bool:
    """Tell whether the source may be done, and is silent for as long as it takes to believe it."""
    if tail.find_here() is not None:
        return not f.wait_readable(SETTLE_TIME)
    return tail.ends_like_eof() and not f.wait_readable(IDLE_TIME)
