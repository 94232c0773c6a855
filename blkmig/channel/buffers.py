# SPDX-License-Identifier: GPL-2.0-or-later
"""How the staging buffers of a channel read and wait, and what measuring said about it.

`_output` and `_input` do as they are told; here they are told. A TCP socket is read with more care than others: each
time that a side is woken for less than a block costs both sides.
"""

from __future__ import annotations

import fcntl
import sys
import termios
from collections.abc import Callable
from typing import TypeAlias

from .. import _input, _output

Seal: TypeAlias = Callable[[memoryview], bytes]
Unseal: TypeAlias = Callable[[memoryview, bool], int | None]
"""What encrypts, and what decrypts: see ``_output.OutputBuffer`` and ``_input.InputBuffer``."""

STAGING_NBYTES = 1 << 16
"""What is small waits here, for company on its way out and for its reader on the way in."""

READ_AHEAD = 512
"""Bytes that are read behind a payload, in the same call: the next heads, and no more, since they are copied once more.
16, 64 and 512 measure the same."""

LEAST_USEFUL = 4096
"""Bytes of payload within an idle time-out that show that the other side lives: 70 B/s with 60 s."""

MOST_CHATTER = 4 << 20
"""Bytes without any payload that show the contrary: 100,000 empty sections, or more."""

TCP_LOWAT = 1 << 20
"""A receiver that waits for a payload is woken when all of it is there; the kernel takes less where its buffers are
smaller."""

TCP_LINGER_NBYTES = 1 << 18
"""Behind a payload as long as this comes the next one, most likely. So much of it is there within 0.1 ms on one
machine."""

TCP_LINGER_SECONDS = 0.0002
"""So long the next payload is given to arrive, for a head alone is not worth being woken. On a slow link this moment is
lost once a block."""


def open_output(fd: int, *, wake_fd: int = -1, seal: Seal | None = None) -> _output.OutputBuffer:
    """Return the staging buffer of what is sent to `fd`, encrypted by `seal` if there is one."""
    return _output.OutputBuffer(fd, STAGING_NBYTES, wake_fd=wake_fd, least_useful=LEAST_USEFUL, seal=seal)


def open_input(
    fd: int,
    *,
    is_tcp: bool,
    wake_fd: int = -1,
    begun: bytes = b"",
    capacity: int = STAGING_NBYTES,
    unseal: Unseal | None = None,
) -> _input.InputBuffer:
    """Return the staging buffer of what is received from `fd`, of which `begun` has been read.

    It is received, and decrypted, by `unseal` if there is one.
    """
    return _input.InputBuffer(
        fd,
        capacity,
        wake_fd=wake_fd,
        begun=begun,
        read_ahead=READ_AHEAD,
        most_lowat=TCP_LOWAT if is_tcp else 0,
        linger_nbytes=TCP_LINGER_NBYTES if is_tcp else 0,
        linger_seconds=TCP_LINGER_SECONDS if is_tcp else 0.0,
        least_useful=LEAST_USEFUL,
        most_chatter=MOST_CHATTER,
        unseal=unseal,
    )


def expect_pages(buffer: _input.InputBuffer, *, is_tcp: bool) -> None:
    """Have payloads that are pages, from a sender on this machine, pass through as such.

    A TCP receiver naps instead of waiting. One that waits is woken, and answers every 64 KiB while SO_RCVLOWAT is not
    reached: on one machine, where the sender's thread does all that, it takes up to four times as long and never gets
    ahead again. 2 GiB took 0.22 to 0.33 s, half of the runs; with naps, 0.23 to 0.25.
    """
    buffer.expect_pages(is_tcp)


def unread_nbytes(fd: int) -> int:
    """Return the bytes that have come to a socket or a pipe, and that nobody has read. Raises OSError."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def unsent_nbytes(fd: int) -> int:
    """Return the bytes in a socket that the peer's machine does not have yet. Raises OSError."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
