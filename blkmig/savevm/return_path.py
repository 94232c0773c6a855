# SPDX-License-Identifier: GPL-2.0-or-later
"""The return path: what the loader says to the source, on the other direction of the channel.

::

    u16 type, u16 length, data       1 SHUT: u32 status, 0 is success     2 PONG: u32, the value of the PING

A source that opened it does not complete before SHUT, and fails when the link closes without one.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from .. import errors

if TYPE_CHECKING:
    from ..channel import InputQEMUFile, OutputQEMUFile

MIG_RP_MSG_SHUT: Final = 1
MIG_RP_MSG_PONG: Final = 2


def send_shut(f: OutputQEMUFile, status: int) -> None:
    """Tell the source that loading is over: 0 it succeeded, anything else it failed."""
    _send_message(f, MIG_RP_MSG_SHUT, status)


def send_pong(f: OutputQEMUFile, value: int) -> None:
    """Answer a PING with its `value`."""
    _send_message(f, MIG_RP_MSG_PONG, value)


def _send_message(f: OutputQEMUFile, kind: int, value: int) -> None:
    f.put_buffer(struct.pack(">HHI", kind, 4, value))
    f.flush()


def read_message(f: InputQEMUFile) -> tuple[int, int | None]:
    """Return the next message's type and value; None for a message that is not one 32-bit value long. Blocks."""
    kind, length = f.get_be16(), f.get_be16()
    if length == 4:
        return kind, f.get_be32()
    f.skip(length)
    return kind, None


def await_shut(f: InputQEMUFile) -> int:
    """Return the status of the loader's SHUT; other messages are passed over. Blocks until it comes.

    Raises :class:`~blkmig.errors.TruncatedStream` if the loader closes the link without one.
    """
    while True:
        position = f.position
        kind, value = read_message(f)
        if kind == MIG_RP_MSG_SHUT:
            if value is None:
                raise errors.StreamError("SHUT on the return path has no status", position=position)
            return value
