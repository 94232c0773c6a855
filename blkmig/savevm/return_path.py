# SPDX-License-Identifier: GPL-2.0-or-later
"""The return path: what the loader says to the source, on the other direction of the channel.

::

    u16 type, u16 length, data       1 SHUT: u32 status, 0 is success     2 PONG: u32, the value of the PING

A source that opened it does not complete before SHUT, and fails when the link closes without one. What two blkmigs say
to each other besides is in `words`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .. import errors
from . import bundles, digestwords, results, sessions, words

if TYPE_CHECKING:
    from ..channel import InputQEMUFile, OutputQEMUFile

MIG_RP_MSG_SHUT: Final = 1
MIG_RP_MSG_PONG: Final = 2

WRONG_BASE: Final[int] = errno.EL2NSYNC
"""The status of a receiver that has found another base than the source's; no disk and no file system answers that."""

DAMAGED: Final[int] = errno.EILSEQ
"""The status of a receiver to which a payload came that is not what was sent."""

_LENGTHS: Final = {
    MIG_RP_MSG_SHUT: (0, 4),
    MIG_RP_MSG_PONG: (4, 4),
    3: (13, 268),  # REQ_PAGES_ID
    4: (12, 12),  # REQ_PAGES
    5: (1, 256),  # RECV_BITMAP
    6: (4, 4),  # RESUME_ACK
    7: (0, 0),  # SWITCHOVER_ACK
    **words.LENGTHS,
}
"""Bytes of each message that a loader may send; of QEMU's, blkmig asks for none but the first two."""

TLS_ALERT: Final = 0x1503, 3
"""How the refusal of a receiver begins that speaks TLS, to who does not."""

_KINDS: Final[dict[type, int]] = {
    words.Done: words.MIG_RP_MSG_DONE,
    sessions.SessionAnswer: words.MIG_RP_MSG_SESSION,
    sessions.Resumed: sessions.MIG_RP_MSG_RESUMED,
}

Reason = int | words.Failure
"""Why a loader has failed: the status of its SHUT, or better, what it has said in ERROR before."""

_OWN_WORDS: Final = {
    0: "it says that it has everything, which cannot be",
    errno.ECANCELED: "it was cancelled there",
    errno.ENODEV: "it has no disk of that name",
    errno.EFBIG: "a disk is larger than its target there is, or may become",
    errno.EBADMSG: "what it got is no stream as it must be",
    errno.ENODATA: "blocks are missing there",
    WRONG_BASE: "it does not hold the base of the disk that is sent, nothing was written there: make it a copy of that "
    "base, or send without --incremental",
    errno.ENOKEY: "it was to verify, and the stream has no digests for that: send it with --verify",
}
"""Statuses of a receiver of ours whose usual text says something else."""

PATIENCE: Final = 10
"""How many idle time-outs a loader may go on saying that it lives, without getting any further."""

FREE_MESSAGES, MESSAGES_PER_SECOND = 1000, 20
"""What a loader may say while its word is waited for; a sign of life comes every second or so."""


def send_shut(f: OutputQEMUFile, status: int) -> None:
    """Tell the source that loading is over: 0 it succeeded, anything else it failed."""
    send_message(f, MIG_RP_MSG_SHUT, struct.pack(">I", status))


def send_pong(f: OutputQEMUFile, value: int) -> None:
    """Answer a PING with its `value`."""
    send_message(f, MIG_RP_MSG_PONG, struct.pack(">I", value))


def send_message(f: OutputQEMUFile, kind: int, data: bytes) -> None:
    """Say one message to the source. Blocks until the link took it."""
    f.put_buffer(encode(kind, data))
    f.flush()


def send_word(f: OutputQEMUFile, word: sessions.SessionAnswer | sessions.Resumed | words.Done) -> None:
    """Say a word of blkmig's to a source that is known to understand it. Blocks until the link took it."""
    send_message(f, _KINDS[type(word)], word.encode())


def encode(kind: int, data: bytes) -> bytes:
    """Return one message to the source."""
    return struct.pack(">HH", kind, len(data)) + data


def last_words(status: int, failure: words.Failure) -> bytes:
    """Return what a loader says that fails, to a source that knows blkmig's words."""
    return encode(words.MIG_RP_MSG_ERROR, failure.encode()) + encode(MIG_RP_MSG_SHUT, struct.pack(">I", status))


def read_message(f: InputQEMUFile) -> tuple[int, int | words.Word | None]:
    """Return the next message's type and value: a 32-bit number, a word of blkmig's, or None. Blocks.

    Raises :class:`~blkmig.errors.StreamError` for what no loader says.
    """
    position = f.position
    kind, length = f.get_be16(), f.get_be16()
    if (kind, length >> 8) == TLS_ALERT:
        raise errors.StreamError("the target speaks TLS: say tls:HOST:PORT", position=position)
    low, high = _LENGTHS.get(kind, (1, 0))
    if not low <= length <= high:
        raise errors.StreamError(
            f"what comes back from the target is no message: type {kind:#x}, {length} bytes; something else answers "
            "there, or an unknown version",
            position=position,
        )
    if kind == words.MIG_RP_MSG_HELLO:
        return kind, words.Hello(f.get_be16(), f.get_be16(), f.get_be32())
    if kind == words.MIG_RP_MSG_REPLY:
        return kind, words.parse_reply(f.get_buffer(length), position)
    if kind == words.MIG_RP_MSG_DONE:
        return kind, words.parse_done(f.get_buffer(length), position)
    if kind == words.MIG_RP_MSG_ERROR:
        return kind, words.parse_error(f.get_buffer(length), position)
    if kind == words.MIG_RP_MSG_ALIVE:
        # Byte by byte, as numbers: what is got in one piece would count as progress, and this must not by itself.
        return kind, words.parse_alive(bytes(f.get_byte() for _ in range(length)))
    if kind == results.MIG_RP_MSG_PROOF_RESULT:
        return kind, results.parse_proof_result(f.get_buffer(length), position)
    if kind == words.MIG_RP_MSG_SESSION:
        return kind, sessions.parse_answer(f.get_buffer(length))
    if kind == sessions.MIG_RP_MSG_RESUMED:
        return kind, sessions.parse_resumed(f.get_buffer(length), position)
    if kind == digestwords.MIG_RP_MSG_DIGEST:
        return kind, digestwords.parse_digest(f.get_buffer(length), position)
    if kind in bundles.LENGTHS:
        return kind, bundles.parse_bundled(kind, f.get_buffer(length))
    if length == 4:
        return kind, f.get_be32()
    f.skip(length, is_payload=False)
    return kind, None


def await_shut(
    f: InputQEMUFile, *, clock: Callable[[], float] = time.monotonic, on_pong: Callable[[], object] | None = None
) -> Reason:
    """Return the status of the loader's SHUT, or its ERROR; other messages are passed over. Blocks until it comes.

    `on_pong` is told of each PONG: nobody has asked for one here, and only a blkmig sends them all the same.

    A loader that takes its time says so in PONGs. Without any message for the idle time-out of `f`, or ten times that
    long without a new value in them, it is given up: :class:`~blkmig.errors.ChannelTimeout`. Raises
    :class:`~blkmig.errors.TruncatedStream` if the loader closes the link without a word.
    """
    patience = Patience(f, clock)
    while True:
        position = f.position
        kind, value = read_message(f)
        if (reason := _reason(kind, value, position)) is not None:
            return reason
        if kind == MIG_RP_MSG_PONG and on_pong is not None:
            on_pong()
        patience.heard(value if isinstance(value, int | words.Alive) else None)


def find_reason(f: InputQEMUFile, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> Reason | None:
    """Return a SHUT's status, or an ERROR, that has come or comes within `seconds`, else None; never raises.

    For a source that was writing when the link broke: a loader that failed has said why before.
    """
    end = clock() + seconds
    with contextlib.suppress(errors.MigrationError):
        for _ in range(FREE_MESSAGES):
            if not f.wait_readable(max(0.0, end - clock())):
                break
            position = f.position
            kind, value = read_message(f)
            if (reason := _reason(kind, value, position)) is not None:
                return reason
    return None


def describe_status(status: int) -> str:
    """Return what the status of a SHUT says, for a person: 1 says no more than that it failed, others are an errno."""
    why = "it does not say why"
    if status in _OWN_WORDS:
        why = _OWN_WORDS[status]
    elif status > 1 and status in errno.errorcode:
        why = os.strerror(status)
    return f"{why} (status {status}); look at its messages"


def _reason(kind: int, value: int | words.Word | None, position: int) -> Reason | None:
    """Return why the loader ends, if this message says so."""
    if isinstance(value, words.Failure):
        return value
    if kind != MIG_RP_MSG_SHUT:
        return None
    if not isinstance(value, int):
        raise errors.StreamError("SHUT on the return path has no status", position=position)
    return value


class Patience:
    """How long a source waits for a loader that says something, but not its last word."""

    def __init__(self, f: InputQEMUFile, clock: Callable[[], float]) -> None:
        self._f = f
        self._clock = clock
        self._began = self._progressed = clock()
        self._value: object = None
        self._messages = 0

    def heard(self, value: object) -> None:
        """Take note of a message with this value. Raises ChannelTimeout without progress, StreamError for chatter."""
        now = self._clock()
        self._messages += 1
        if self._messages > FREE_MESSAGES + MESSAGES_PER_SECOND * (now - self._began):
            raise errors.StreamError(
                "the target sends message after message on the return path, but not its word that it has everything",
                position=self._f.position,
            )
        if value != self._value:
            self._value, self._progressed = value, now
        longest = self._f.idle_timeout * PATIENCE
        if longest and now - self._progressed > longest:
            at = f" ({value.text})" if isinstance(value, words.Alive) and value.text else ""
            why = f"it says that it is alive, and has got no further for {longest:g} s (10 times --idle-timeout){at}"
            raise errors.ChannelTimeout("waiting for the target's word", uri=self._f.uri, cause=why)
        self._f.payload_came()
