# SPDX-License-Identifier: GPL-2.0-or-later
"""Payloads that travel as a zstd frame, in the section ``blkmig``.

::

    EXTRA ZSTD   u32 n      of the block or the pack that follows, the payload is one frame of n bytes
    a block's or pack's head, as without
    n bytes                 in place of the payload

So in every count, and in every order, such a block or pack is what it would be without. A frame that would save less
than a sixteenth is not sent: the payload goes as it is.
"""

from __future__ import annotations

import struct
from typing import Final

from .. import _core, channel, errors, zstd
from . import extras

BODY: Final = struct.Struct(">I")

LEAST_SAVED: Final = 16
"""A frame saves one part in so many of its payload at least."""


def most_bytes(nbytes: int) -> int:
    """Return how long a frame of `nbytes` bytes may be to be worth being sent."""
    return nbytes - nbytes // LEAST_SAVED


def record(frame: bytes) -> bytes:
    """Return the record that goes before the head of what `frame` is the payload of."""
    return extras.extra(extras.ExtraKind.ZSTD, BODY.pack(len(frame)))


class Coming:
    """What a receiver has been told of the payload that comes next. All disks of a stream share one."""

    def __init__(self) -> None:
        self.nbytes = 0
        """Bytes of the frame that comes in its place; 0: none, it comes as it is."""

    def take(self, body: bytes, position: int) -> None:
        """Take the body of a ZSTD. Raises :class:`~blkmig.errors.StreamError` for what is none."""
        if len(body) != BODY.size or self.nbytes:
            raise errors.StreamError("ZSTD is not followed by a payload, or is none", position=position)
        (self.nbytes,) = BODY.unpack(body)
        if not 0 < self.nbytes <= most_bytes(_core.BLOCK_SIZE):
            raise errors.StreamError(f"a frame of {self.nbytes} bytes for one payload", position=position)

    def forget(self) -> None:
        """Expect no frame: the link was lost, maybe right behind a ZSTD."""
        self.nbytes = 0

    def get(self, f: channel.InputQEMUFile, nbytes: int) -> bytes:
        """Get the frame, whose payload has `nbytes` bytes. Blocks."""
        return f.get_buffer(self._next(f, nbytes))

    def skip(self, f: channel.InputQEMUFile, nbytes: int) -> int:
        """Pass over the frame, whose payload has `nbytes` bytes; only its head is looked at, and no library is needed.

        Returns its length. Blocks. Raises :class:`~blkmig.errors.StreamError`.
        """
        position, count = f.position, self._next(f, nbytes)
        head = f.get_buffer(min(count, zstd.HEAD_NBYTES))
        try:
            zstd.check_head(head, nbytes)
        except zstd.FrameError as error:
            raise _damaged(error, position) from error
        f.skip(count - len(head))
        return count

    def _next(self, f: channel.InputQEMUFile, nbytes: int) -> int:
        """Return the length of the frame that comes now."""
        count, self.nbytes = self.nbytes, 0
        if count > most_bytes(nbytes):  # before anything is allocated
            raise errors.StreamError(f"a frame of {count} bytes for {nbytes} bytes of payload", position=f.position)
        return count


def unpack(frame: bytes, buf: _core.BlockBuffer, nbytes: int, position: int) -> None:
    """Put the `nbytes` bytes that `frame` holds into the own memory of `buf`, where a payload would come.

    Raises :class:`~blkmig.errors.StreamError` for any other frame, and :class:`~blkmig.errors.UnsupportedStream` where
    the library is missing; then `buf` holds what it held before.
    """
    try:
        data = zstd.decompress(frame, nbytes)
    except zstd.FrameError as error:
        raise _damaged(error, position) from error
    except errors.ParameterError as error:
        raise errors.UnsupportedStream(f"the stream is compressed, and {error}", position=position) from error
    buf.data[:nbytes] = data
    buf.gathered()


def _damaged(error: zstd.FrameError, position: int) -> errors.StreamError:
    return errors.StreamError(f"a compressed payload cannot be used: {error}", position=position)
