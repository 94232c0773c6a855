# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of the stream: device state, which nothing tells the length of, and the description behind it.

The stream ends where a description comes whose sizes add up to the state before it, or else with the link. A source
with a return path keeps that open and waits for our SHUT: then the end is also where what came so far looks like one,
and nothing follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .. import errors, logs
from . import container, vmdescription

if TYPE_CHECKING:
    from ..channel import InputQEMUFile

log = logs.Logger(__name__)

DRAIN_PIECE: Final = 256 << 10

SETTLE_TIME: Final = 0.1
"""Seconds that nothing may follow what looks like the final description, on a link that the source keeps open."""

IDLE_TIME: Final = 3.0
"""Seconds without a byte after which a source that keeps the link open is believed to send no description.

Machine types up to 2.2 have none, and nothing else tells that a stream of theirs is over.
"""

PATIENT_IDLE_TIME: Final = 30.0
"""The same for a machine type with footers: it has a description, too, unless somebody saw to it that it has not."""


def idle_time(*, has_footers: bool) -> float:
    """Return for how many seconds to wait for a description."""
    return PATIENT_IDLE_TIME if has_footers else IDLE_TIME


def drain_to_end(
    f: InputQEMUFile, already_read: int, *, is_kept_open: bool, has_footers: bool
) -> tuple[vmdescription.StreamEnd, bytes]:
    """Read and drop everything to the end of the stream, and return that, and what came behind it. Blocks.

    `already_read` are the bytes of the first FULL record that the caller has read. Raises
    :class:`~blkmig.errors.TruncatedStream` if what came last is no end of a stream.
    """
    tail = vmdescription.TailFinder(already_read, has_footers=has_footers)
    while tail.end is None and not (is_kept_open and _is_silent_after(f, tail, has_footers)):
        piece = f.get_some(DRAIN_PIECE)
        if not piece:
            break
        tail.feed(piece)
    if tail.end is not None:  # which the last piece has shown
        return tail.end, piece[len(piece) - (tail.nbytes - tail.end.stop) :]
    end = tail.find_here()
    if end is not None:
        return end, b""
    if tail.ends_like_eof():
        return vmdescription.StreamEnd(tail.nbytes - 1), b""
    raise errors.TruncatedStream("the stream stops inside the state of the devices", position=f.position)


def _is_silent_after(f: InputQEMUFile, tail: vmdescription.TailFinder, has_footers: bool) -> bool:
    """Tell whether the source may be done, and is silent for as long as it takes to believe it."""
    if tail.find_here() is not None:
        return not f.wait_readable(SETTLE_TIME)
    return tail.ends_like_eof() and not f.wait_readable(idle_time(has_footers=has_footers))


def get_vmdescription(
    f: InputQEMUFile, *, is_kept_open: bool, has_footers: bool
) -> tuple[vmdescription.State, dict[str, Any] | None, int] | None:
    """Read the description that follows the end of file: what became of it, what it says, its length.

    None if none follows. What it says is None, too, if it is no JSON object, or too long to be looked at.
    """
    if is_kept_open and not f.wait_readable(idle_time(has_footers=has_footers)):
        return None
    if f.at_eof():
        return None
    kind = f.peek_byte()
    if kind != container.QEMU_VM_VMDESCRIPTION:
        if is_kept_open:
            log.warning("the end of the stream is followed by %#04x instead of a description: ignored", kind)
        return None
    f.skip(1)
    nbytes = f.get_be32()
    if nbytes > vmdescription.MAX_VMDESCRIPTION:
        f.skip(nbytes)
        return "unread", None, nbytes
    return *vmdescription.parse_vmdescription(f.get_buffer(nbytes)), nbytes
