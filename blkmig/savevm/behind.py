# SPDX-License-Identifier: GPL-2.0-or-later
"""What follows the end of a stream: nothing that belongs to it, but who has written it there wants to know.

The disks of the stream are complete without it. It may be another stream, or what is left of damage; in a pipe, too,
where a command has written more than one stream. Zeros are padding, as of a copy in whole blocks, and what a device
holds behind the stream that was written to it is older. Behind a stream whose source waits for our word nobody looks.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from .. import errors
from . import container, stream

if TYPE_CHECKING:
    from ..channel import InputQEMUFile

PIECE: Final = 256 << 10

MOST_PADDING: Final = 1 << 30
"""Bytes of zeros that are looked at; behind more of them nobody looks."""

MOMENT: Final = 0.1
"""Seconds that who has written a stream into a pipe has for more of it, or for its end."""

MOST_SECONDS: Final = 2.0
"""How long zeros are looked at in all: who sends one a moment would have no end."""


def look(f: InputQEMUFile, came: bytes = b"") -> stream.Behind | None:
    """Return what follows the end of the stream in `f`, of which `came` was read already; None if that is nothing.

    Blocks for a moment. Raises Cancelled.
    """
    if f.is_device:
        return None
    position, padding, deadline = f.position - len(came), 0, time.monotonic() + MOST_SECONDS
    piece = came or _next(f)
    while piece and not (rest := piece.lstrip(b"\0")):
        position, padding = position + len(piece), padding + len(piece)
        piece = _next(f) if padding < MOST_PADDING and time.monotonic() < deadline else b""
    if not piece:
        return None
    position += len(piece) - len(rest)
    while len(rest) < len(container.QEMU_VM_FILE_MAGIC) and (piece := _next(f)):
        rest += piece
    return stream.Behind(position, is_stream=rest.startswith(container.QEMU_VM_FILE_MAGIC))


def _next(f: InputQEMUFile) -> bytes:
    with contextlib.suppress(errors.ChannelError):  # a link that is reset now, and a file that cannot be read there
        if f.wait_readable(MOMENT):
            return f.get_some(PIECE)
    return b""
