# SPDX-License-Identifier: GPL-2.0-or-later
"""What an outgoing migration hears of its target before the stream's end, message by message: what ends the migration,
what nobody has asked for, and the rest, which is for whoever has asked. Migration thread only.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator

from .. import channel, errors, savevm
from . import connection, digestbox, reasons

LONGEST_WAIT = 86400.0
"""Seconds that the kernel is asked to wait at a time, where nothing bounds a wait."""

LEAST_MESSAGE_SECONDS = 1.0
"""How long a message of which a part has come may take, however late it began."""

Message = tuple[int, "int | savevm.Word | None"]
"""What came on the return path: its type and its value."""


class Hearing(abc.ABC):
    """Hears what the target of `link` says."""

    def __init__(self, link: connection.Connection, clock: Callable[[], float]) -> None:
        # Set here, then read-only.
        self._clock = clock
        self._connection = link
        # Migration thread only.
        self._is_reply_due = self._is_session_due = self._is_bundle_due = self._is_resumed_due = False
        self.has_heard = False
        """Anything has come."""

        self.on_ack: Callable[[int, int], None] | None = None
        """Called with the number of each ACK, and its position in what the target says."""

        self.digests = digestbox.DigestBox(link, self._read_before_end, clock)
        self.knows_trees = False
        """The target has said that it verifies digests in the form of a tree."""

        self.proof_result: savevm.ProofResult | None = None
        """How far the target is with the proofs, as it has said last."""

    @abc.abstractmethod
    def _is_answer(self, value: object) -> bool:
        """Return whether a PONG answers one of our PINGs."""

    def _heard_within(self, seconds: float, *, longest: float = 0.0) -> Iterator[Message]:
        """Yield the messages that come within `seconds`, however many; a half one that stands still is an error.

        After an ALIVE it is `seconds` anew, but `longest` at most together.
        """
        path = self._connection.return_path
        assert path is not None
        idle, begun = path.idle_timeout, self._clock()
        end = begun + seconds
        try:
            while (left := min(end - self._clock(), LONGEST_WAIT)) > 0:
                if path.wait_readable(left):
                    path.set_idle_timeout(max(left, LEAST_MESSAGE_SECONDS), first=left)
                    message = self._read_before_end(path)
                    if longest and isinstance(message[1], savevm.Alive):
                        end = min(self._clock() + seconds, begun + longest)
                    yield message
        finally:
            path.set_idle_timeout(idle, first=idle)

    def _read_before_end(self, path: channel.InputQEMUFile, what: str = reasons.BEFORE_END) -> Message:
        """Return the next message; raise if it is one that ends the migration. Blocks."""
        position = path.position
        kind, value = savevm.read_message(path)
        self.has_heard = True
        if kind == savevm.MIG_RP_MSG_SHUT:
            raise self._connection.target_failed(value if isinstance(value, int) else 0, what)
        if isinstance(value, savevm.Failure):
            raise self._connection.target_failed(value, what)
        if isinstance(value, savevm.Reply) and not self._is_reply_due:
            raise errors.StreamError("the target replies to what nobody has asked", position=position)
        if isinstance(value, savevm.SessionAnswer) and not self._is_session_due:
            raise errors.StreamError("the target speaks of a session, and nobody has asked", position=position)
        if isinstance(value, savevm.Resumed) and not self._is_resumed_due:
            raise errors.StreamError("the target speaks of what is resumed, and nobody has asked", position=position)
        if isinstance(value, savevm.Bundled) and not self._is_bundle_due:
            raise errors.StreamError("the target speaks of connections, and nobody has asked", position=position)
        if kind == savevm.MIG_RP_MSG_ACK and isinstance(value, int):
            if self.on_ack is None:
                raise errors.StreamError("the target acknowledges what was not sent", position=position)
            self.on_ack(value, position)
        if isinstance(value, savevm.ProofResult):
            self.proof_result = value
        if isinstance(value, savevm.Digest):
            self.digests.keep(value, position)
        if kind == savevm.MIG_RP_MSG_PONG and value == savevm.KNOWS_TREES:
            self.knows_trees = True
        if isinstance(value, savevm.Word) or (kind == savevm.MIG_RP_MSG_PONG and not self._is_answer(value)):
            self._connection.is_no_qemu()
        return kind, value
