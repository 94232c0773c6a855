# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading device state to the end of the stream, where nothing says how long either is.

Without a return path the end of the link is the end of the stream. With one, the source keeps the link open and waits
for our SHUT, so the end is where the last byte so far completes a description, and nothing follows.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamEnd:
    """Where the stream ended, counted from where draining began."""

    eof_offset: int
    """Bytes before the end of file record."""

    description: dict[str, Any] | None = None
    description_nbytes: int = 0


def drain_to_end(f: InputQEMUFile, *, is_kept_open: bool, has_footers: bool) -> StreamEnd:
    """Read and drop everything to the end of the stream; blocks until it is there.

    Raises :class:`~blkmig.errors.TruncatedStream` if what came last is no end of a stream.
    """
    tail = vmdescription.TailFinder()
    while not (is_kept_open and _is_silent_after(f, tail, has_footers)):
        piece = f.get_some(DRAIN_PIECE)
        if not piece:
            break
        tail.feed(piece)
    found = tail.find()
    if found is not None:
        eof_offset, description, nbytes = found
        return StreamEnd(eof_offset=eof_offset, description=description, description_nbytes=nbytes)
    if tail.ends_like_eof(has_footers=has_footers):
        return StreamEnd(eof_offset=tail.nbytes - 1)
    raise errors.TruncatedStream("the stream stops inside the state of the devices", position=f.position)


def _is_silent_after(f: InputQEMUFile, tail: vmdescription.TailFinder, has_footers: bool) -> bool:
    """Tell whether the source may be done, and is silent for as long as it takes to believe it."""
    if tail.find() is not None:
        return not f.wait_readable(SETTLE_TIME)
    return tail.ends_like_eof(has_footers=has_footers) and not f.wait_readable(IDLE_TIME)
