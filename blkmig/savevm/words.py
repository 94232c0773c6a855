# SPDX-License-Identifier: GPL-2.0-or-later
"""What a blkmig says to another one on the return path, beyond QEMU's messages. No QEMU sends or gets them.

::

    HELLO 0x8001   u16 lowest version, u16 highest version, u32 abilities
    REPLY 0x8002   u16 count, { u16 index in the table, u32 errno, u16 n, n bytes of text } of each refusal
    READY 0x8003   u32 the number of the FLUSH
    ERROR 0x8004   u32 errno, u64 offset, u8 n, n bytes of the disk's name, u16 n, n bytes of text
    ACK   0x8005   u32 the number of the BARRIER
    DIGEST 0x8006  see `digestwords`
    SESSION 0x800a u32 incarnation, u32 last ACK, u32 last number, u32 flags: see `sessions`
    DONE  0x8007   u32 the number of the COMMIT, then as REPLY the disks whose names could not be given
    ALIVE 0x8008   text: what the receiver is at
    0x8009         see `results`
    0x800c, 0x800d see `bundles`
    RESUMED 0x800e u8 state, u32 number: see `sessions`

A receiver says the first when the source asks for it, by a PING of the value `ASK`, and the others only if it has said
the first; ALIVE only if the source has asked for that, too, by a PING of the value `ASK_ALIVE`. An errno of 0 is one
that nobody knows. Texts come from another host, and are made printable here.
"""

from __future__ import annotations

import enum
import importlib.util
import struct
from typing import Final, NamedTuple

from .. import errors, texts, zstd
from . import bundles, digestwords, results, sessions

MIG_RP_MSG_HELLO: Final = 0x8001
MIG_RP_MSG_REPLY: Final = 0x8002
MIG_RP_MSG_READY: Final = 0x8003
MIG_RP_MSG_ERROR: Final = 0x8004
MIG_RP_MSG_ACK: Final = 0x8005
MIG_RP_MSG_SESSION: Final = 0x800A
MIG_RP_MSG_DONE: Final = 0x8007
MIG_RP_MSG_ALIVE: Final = 0x8008

ASK: Final = 0x626C6B32
"""The value of the PING that asks which versions of the section ``blkmig`` the receiver takes; others answer PONG."""

ASK_ALIVE: Final = 0x616C6976
"""The value of the PING that asks for signs of life in words; who knows none of them answers PONG."""

ASK_TREES: Final = 0x74726565
"""The value of the PING that asks whether the target verifies digests in the form of a tree: `KNOWS_TREES` says so."""

KNOWS_TREES: Final = 0x54524545
"""The value of the PONG that says so."""

VERSION: Final = 1
"""The version of the section that this blkmig speaks."""


class Ability(enum.IntFlag, boundary=enum.KEEP):
    """What a receiver can do beyond the first edition; a source uses it only if HELLO has its bit.

    Unknown bits are those of later versions: they are kept, and nobody looks at them.
    """

    BARRIERS = 0x01
    COMMIT = 0x02
    DELTA = 0x04
    PROOF = 0x08
    CHECKS = 0x10
    ZSTD = 0x20
    BUNDLE = 0x40
    RESUME = 0x80
    ZEROS = 0x100
    RECOMPARE = 0x200


CHECKS: Final = Ability.CHECKS if importlib.util.find_spec("xxhash") is not None else Ability(0)
"""Without what computes checksums, this blkmig has none to check."""

RESUME: Final = Ability.RESUME if importlib.util.find_spec("blake3") is not None else Ability(0)
"""The same of what computes digests, which is not loaded before somebody asks for one."""

ZSTD: Final = Ability.ZSTD if zstd.is_available() else Ability(0)
"""And of what compresses."""

ALWAYS: Final = (
    Ability.BARRIERS
    | Ability.COMMIT
    | Ability.DELTA
    | Ability.PROOF
    | Ability.BUNDLE
    | Ability.ZEROS
    | Ability.RECOMPARE
)
OURS: Final = ALWAYS | RESUME | CHECKS | ZSTD
"""What this blkmig can do, at either end."""

MAX_REFUSALS: Final = 256
MAX_REFUSAL_TEXT: Final = 200
MAX_ERROR_TEXT: Final = 1000
MAX_ALIVE_TEXT: Final = 200

_REFUSAL: Final = struct.Struct(">HIH")
_ERROR: Final = struct.Struct(">IQB")
_NO_OFFSET: Final = (1 << 64) - 1

_REPLY_LENGTHS: Final = (2, 2 + MAX_REFUSALS * (_REFUSAL.size + MAX_REFUSAL_TEXT))

LENGTHS: Final = {
    MIG_RP_MSG_HELLO: (8, 8),
    MIG_RP_MSG_REPLY: _REPLY_LENGTHS,
    MIG_RP_MSG_READY: (4, 4),
    MIG_RP_MSG_ERROR: (_ERROR.size + 2, _ERROR.size + 255 + 2 + MAX_ERROR_TEXT),
    MIG_RP_MSG_ACK: (4, 4),
    MIG_RP_MSG_SESSION: (sessions.ANSWER_NBYTES, sessions.ANSWER_NBYTES),
    MIG_RP_MSG_DONE: (4 + _REPLY_LENGTHS[0], 4 + _REPLY_LENGTHS[1]),
    **digestwords.LENGTHS,
    MIG_RP_MSG_ALIVE: (0, MAX_ALIVE_TEXT),
    **results.LENGTHS,
    **bundles.LENGTHS,
    **sessions.LENGTHS,
}
"""Bytes of each message, at least and at most."""


class Hello(NamedTuple):
    """Which versions of the section a receiver takes, and what it can do beyond the first edition."""

    lowest: int = VERSION
    highest: int = VERSION
    abilities: int = 0

    @property
    def common_abilities(self) -> Ability:
        """What both ends can do."""
        return OURS & self.abilities

    @property
    def is_understood(self) -> bool:
        """Whether one of these versions is ours."""
        return self.lowest <= VERSION <= self.highest

    def encode(self) -> bytes:
        """Return the message's data."""
        return struct.pack(">HHI", self.lowest, self.highest, self.abilities)


class Refusal(NamedTuple):
    """A disk that the receiver does not take: its place in the table, and why."""

    disk: int
    errno: int
    text: str


class Reply(NamedTuple):
    """Which disks of the table the receiver refuses; none: it takes them all."""

    refusals: tuple[Refusal, ...] = ()

    def encode(self) -> bytes:
        """Return the message's data."""
        return struct.pack(">H", len(self.refusals)) + b"".join(map(_encode_refusal, self.refusals))


class Failure(NamedTuple):
    """Why a receiver has failed: its own words, and the disk and the offset where there are such."""

    text: str
    errno: int = 0
    offset: int | None = None
    device: str = ""

    def encode(self) -> bytes:
        """Return the message's data; of a text that is too long, the beginning."""
        offset = _NO_OFFSET if self.offset is None else self.offset
        name = self.device.encode("utf-8", "surrogateescape")[:255]
        text = texts.cut(self.text, MAX_ERROR_TEXT)
        return _ERROR.pack(self.errno, offset, len(name)) + name + struct.pack(">H", len(text)) + text


class Alive(NamedTuple):
    """A sign of life of a receiver that takes its time: what it is at, "" if there is nothing to say."""

    text: str = ""

    def encode(self) -> bytes:
        """Return the message's data; of a text that is too long, the beginning."""
        return texts.cut(self.text, MAX_ALIVE_TEXT)


class Done(NamedTuple):
    """That the disks are the receiver's own, by COMMIT `number`; `nameless` are those that have not got their names."""

    number: int
    nameless: tuple[Refusal, ...] = ()

    def encode(self) -> bytes:
        """Return the message's data."""
        return struct.pack(">I", self.number) + Reply(self.nameless).encode()


_Elsewhere = digestwords.Digest | results.ProofResult | sessions.SessionAnswer | sessions.Resumed | bundles.Bundled
Word = Hello | Reply | Failure | Done | Alive | _Elsewhere


def parse_alive(data: bytes) -> Alive:
    """Return what an ALIVE says."""
    return Alive(_text(data))


def parse_done(data: bytes, position: int) -> Done:
    """Return what a DONE says. Raises :class:`~blkmig.errors.StreamError` for what no blkmig says."""
    return Done(struct.unpack_from(">I", data)[0], parse_reply(data[4:], position, name="DONE").refusals)


def parse_reply(data: bytes, position: int, *, name: str = "REPLY") -> Reply:
    """Return what a REPLY says, or the same within the message called `name`.

    Raises :class:`~blkmig.errors.StreamError` for what no blkmig says.
    """
    (count,) = struct.unpack_from(">H", data)
    refusals: list[Refusal] = []
    at = 2
    while len(refusals) < count and at + _REFUSAL.size <= len(data):
        index, code, length = _REFUSAL.unpack_from(data, at)
        at += _REFUSAL.size + length
        if length > MAX_REFUSAL_TEXT:
            raise _damaged(name, position)
        refusals.append(Refusal(index, code, _text(data[at - length : at])))
    indices = {refusal.disk for refusal in refusals}
    if len(indices) != count or at != len(data) or not all(index < MAX_REFUSALS for index in indices):
        raise _damaged(name, position)
    return Reply(tuple(refusals))


def parse_error(data: bytes, position: int) -> Failure:
    """Return what an ERROR says. Raises :class:`~blkmig.errors.StreamError` for what no blkmig says."""
    code, offset, length = _ERROR.unpack_from(data)
    name, rest = data[_ERROR.size : _ERROR.size + length], data[_ERROR.size + length :]
    if len(rest) < 2 or struct.unpack_from(">H", rest)[0] != len(rest) - 2 or len(rest) - 2 > MAX_ERROR_TEXT:
        raise _damaged("ERROR", position)
    device = name.decode("utf-8", "surrogateescape")
    return Failure(_text(rest[2:]), code, None if offset == _NO_OFFSET else offset, device)


def _encode_refusal(refusal: Refusal) -> bytes:
    text = texts.cut(refusal.text, MAX_REFUSAL_TEXT)
    return _REFUSAL.pack(refusal.disk, refusal.errno, len(text)) + text


def _text(data: bytes) -> str:
    return texts.printable(data.decode("utf-8", "backslashreplace"))


def _damaged(name: str, position: int) -> errors.StreamError:
    return errors.StreamError(f"what comes back from the target is no {name} as it must be", position=position)
