# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that goes on where another process of it was killed, towards a receiver that may still wait for that one.

::

    "blkR", the session's key, the next incarnation ─► RESUMED: nobody     a receiver that has not met this session
                                                       RESUMED: receiver   it goes on with what has come
                                                       RESUMED: owner      it has taken the disks already
                                                       ERROR               it goes on with another process, or cannot
                                                       (closed)            a blkmig that does not know the word

Behind the first two the stream begins as any. Behind the last one it does so on another connection. `keyfile` has the
key. All of it belongs to the migration thread.
"""

from __future__ import annotations

from .. import errors, savevm
from . import connection, keyfile, questions

_OWNER = (
    "in doubt no more: the target has taken the disks, by COMMIT {0} of the process before this one, and nothing is "
    "left to resume [{1}]. If that was a move, the disks are the target's: do not use them here any more"
)


class Resuming:
    """Finds the session of the process before, and the receiver that waits for it."""

    def __init__(self, link: connection.Connection, asked: questions.Questions, file: keyfile.KeyFile) -> None:
        self._connection = link
        self._questions = asked
        self._file = file
        self.is_answered = False
        """The receiver waits for another process of the source if this one is killed."""

        self.may_be_awaited = False
        """The receiver may wait for this process, or for another one that resumes after it."""

        self.is_owner = False
        """The receiver of that session has said that it has not taken the disks, and never will by what was sent."""

    def connect(self, known: keyfile.Known, seconds: int, *, timeout: float, idle_timeout: float) -> bool:
        """Open the first link by the word that another process of the session that is `known` resumes. Blocks.

        Its receiver waits for yet another one for about `seconds` if it is lost.

        Returns whether it is open; otherwise its receiver is to be met without that word. Raises
        :class:`~blkmig.errors.TargetFailed` if it does not take this process, and InDoubt if it has taken the disks.
        """
        word = savevm.Session(known.key, known.incarnation, 1, seconds).resume()
        try:
            self._connection.connect_again(word, timeout=timeout, idle_timeout=idle_timeout)
            answer = self._hear()
        except errors.ChannelTimeout:
            raise
        except errors.ChannelError:
            if self._questions.has_heard:
                raise
            self._connection.abort()
            self._connection.rest(0)
            return False
        if answer.waiting == savevm.Waiting.OWNER:
            self._file.remove()
            raise errors.InDoubt(_OWNER.format(answer.number, self._connection.uri))
        self.is_answered = self.may_be_awaited = True
        self.is_owner = answer.waiting == savevm.Waiting.RECEIVER
        return True

    def _hear(self) -> savevm.Resumed:
        """Return the answer. A receiver that may have heard of this process is told if it is cancelled meanwhile."""
        try:
            return self._questions.await_resumed()
        except errors.MigrationError as error:
            self.may_be_awaited = isinstance(error, errors.Cancelled)
            raise
        except BaseException:
            self.may_be_awaited = True
            raise
        finally:
            if self.may_be_awaited:
                self._connection.say_last(savevm.NOTHING)
