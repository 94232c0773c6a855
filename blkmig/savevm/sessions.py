# SPDX-License-Identifier: GPL-2.0-or-later
"""What two blkmigs say of a session: one migration that may take several connections.

::

    the source    SESSION: EXTRA of kind 1 in START, 28 bytes     key, incarnation, attempt, seconds
    the target    SESSION, 0x800a, behind REPLY                   incarnation, last ACK, last number, flags
    the source    on each later connection, before all else       "blkS" and the same 28 bytes
    the target                                                    SESSION, 0x800a
    another process of that source, before its stream             "blkR" and 28 such bytes, the next incarnation
    the target                                                    RESUMED, 0x800e   u8 state, u32 number

Whoever has the 16 bytes of the key may go on with the session, so they are random, and nobody prints them.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from .. import errors

KEY_NBYTES: Final = 16

AGAIN_MAGIC: Final = b"blkS"
"""How a connection begins that goes on with a session; a stream of its own begins with QEVM."""

RESUME_MAGIC: Final = b"blkR"
"""How a connection begins on which another process of the source begins a stream."""

FIRST_INCARNATION: Final = 1
"""The number of the process that begins a session; those that resume it count on."""

MAX_SECONDS: Final = 86400
"""A source that comes again later than that does not come again."""

_BODY: Final = struct.Struct(f">{KEY_NBYTES}sIII")
AGAIN_NBYTES: Final = len(AGAIN_MAGIC) + _BODY.size

_ANSWER: Final = struct.Struct(">IIII")
_TAKES_BARRIERS: Final = 1
_WAITS: Final = 2
ANSWER_NBYTES: Final = _ANSWER.size

MIG_RP_MSG_RESUMED: Final = 0x800E
_RESUMED: Final = struct.Struct(">BI")
LENGTHS: Final = {MIG_RP_MSG_RESUMED: (_RESUMED.size, _RESUMED.size)}
"""Bytes of the message, at least and at most."""


class Session(NamedTuple):
    """Which session a connection belongs to, and which of its connections it is."""

    key: bytes
    incarnation: int
    """Which of its sending processes this is: the target's number for it, 0 before it has said one."""

    attempt: int
    """Which connection of that process this is, from 1. One with a lower number has no effect any more."""

    seconds: int
    """How long the source tries to come again after the link is lost. 0: it does not, and the session ends."""

    def __repr__(self) -> str:
        """Return all but the key, which makes whoever has it the source."""
        return f"Session(incarnation={self.incarnation}, attempt={self.attempt}, seconds={self.seconds})"

    def encode(self) -> bytes:
        """Return the body of the record."""
        return _BODY.pack(self.key, self.incarnation, self.attempt, self.seconds)

    def again(self) -> bytes:
        """Return what a connection begins with that goes on with the session."""
        return AGAIN_MAGIC + self.encode()

    def resume(self) -> bytes:
        """Return what a connection begins with on which another process of the source begins its stream."""
        return RESUME_MAGIC + self.encode()


class SessionAnswer(NamedTuple):
    """What the target says to that."""

    incarnation: int
    last_ack: int
    """The number of the last BARRIER that was acknowledged, 0 for none."""

    last_number: int
    """The number of the last FLUSH or END that came, 0 for none."""

    takes_barriers: bool
    """All of its disks can be flushed while others are written."""

    waits: bool
    """It waits for the source when the link is lost."""

    def encode(self) -> bytes:
        """Return the message's data."""
        flags = self.takes_barriers * _TAKES_BARRIERS + self.waits * _WAITS
        return _ANSWER.pack(self.incarnation, self.last_ack, self.last_number, flags)


class Waiting(enum.IntEnum):
    """Who a process of the source meets that resumes."""

    NOBODY = 0
    """A receiver that has not met this session. It says nothing of the disks' owner."""

    RECEIVER = 1
    """The one that has received from the process before. It has not taken the disks, and takes no END of that process
    any more: the source is their owner."""

    OWNER = 2
    """The same, and it has taken the disks."""


class Resumed(NamedTuple):
    """What the target says to a process that resumes."""

    waiting: Waiting
    number: int = 0
    """That of the COMMIT by which it has taken the disks."""

    def encode(self) -> bytes:
        """Return the message's data."""
        return _RESUMED.pack(*self)


def parse_resumed(data: bytes, position: int) -> Resumed:
    """Return what a RESUMED says. Raises :class:`~blkmig.errors.StreamError` for what no blkmig says."""
    waiting, number = _RESUMED.unpack(data)
    if waiting not in list(Waiting):
        raise errors.StreamError(f"RESUMED of state {waiting}, which nobody knows", position=position)
    return Resumed(Waiting(waiting), number)


def parse_session(body: bytes, position: int) -> Session:
    """Return what a SESSION says. Raises :class:`~blkmig.errors.StreamError` for what no blkmig says."""
    if len(body) != _BODY.size:
        raise errors.StreamError(f"SESSION has {len(body)} bytes, and must have {_BODY.size}", position=position)
    found = Session(*_BODY.unpack(body))
    if not found.attempt or found.seconds > MAX_SECONDS:
        raise errors.StreamError(
            f"SESSION of attempt {found.attempt} and {found.seconds} s, which cannot be", position=position
        )
    return found


def parse_again(data: bytes) -> Session:
    """Return what a connection says that begins with `AGAIN_MAGIC`, or `RESUME_MAGIC`; raises StreamError as
    `parse_session`."""
    return parse_session(data[len(AGAIN_MAGIC) :], 0)


def parse_answer(data: bytes) -> SessionAnswer:
    """Return what the target says to a SESSION; of flags that nobody knows, nothing."""
    incarnation, last_ack, last_number, flags = _ANSWER.unpack(data)
    return SessionAnswer(incarnation, last_ack, last_number, bool(flags & _TAKES_BARRIERS), bool(flags & _WAITS))
