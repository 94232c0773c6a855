# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers of a target that compares: DIGESTs come among other messages, and are kept until somebody takes them."""

from __future__ import annotations

import collections
from collections.abc import Callable

from .. import block, channel, errors, savevm
from . import connection

_NO_ANSWER = (
    "the target has answered no question about what it holds within {0:g} s (--idle-timeout), {1} times, although its "
    "link came back: look at its disks, say a longer time, or send everything (--no-delta)"
)


class DigestBox:
    """The DIGESTs that came on the return path of `link`, which `read` reads. Migration thread only."""

    def __init__(
        self,
        link: connection.Connection,
        read: Callable[[channel.InputQEMUFile], object],
        clock: Callable[[], float],
    ) -> None:
        self._connection = link
        self._read = read
        self._clock = clock
        self._digests: collections.deque[savevm.Digest] = collections.deque()
        self._waits_since: float | None = None
        self._silences = 0  # time-outs since an answer came, each on a link of its own
        self.is_expected = False
        """Somebody asks for digests."""

    def keep(self, answer: savevm.Digest, position: int) -> None:
        """Keep a DIGEST that came. Raises :class:`~blkmig.errors.StreamError` if there cannot be one."""
        if not self.is_expected or len(self._digests) >= block.MAX_ASKS:
            raise errors.StreamError("the target says digests that nobody has asked for", position=position)
        self._digests.append(answer)

    def forget(self) -> None:
        """Drop what came on a link that was lost."""
        self._digests.clear()
        self._waits_since = None

    def take(self, seconds: float) -> savevm.Digest | None:
        """Return the next DIGEST that has come, or comes within `seconds`, else None. One is due. Blocks.

        Raises :class:`~blkmig.errors.ChannelTimeout` if none came for the idle time-out, so that the link is opened
        again, and :class:`~blkmig.errors.TargetFailed` if that did not help ten times.
        """
        path, doing = self._connection.return_path, "waiting for the target's digests"
        assert path is not None
        with self._connection.losing(doing):
            if not self._digests and path.wait_readable(seconds):
                self._read(path)
            if self._digests:
                self._waits_since, self._silences = None, 0
                return self._digests.popleft()
            now = self._clock()
            if self._waits_since is None:
                self._waits_since = now
            if 0 < path.idle_timeout < now - self._waits_since:
                self._silences += 1
                if self._silences >= savevm.PATIENCE:
                    raise errors.TargetFailed(_NO_ANSWER.format(path.idle_timeout, self._silences))
                why = f"none came within {path.idle_timeout:g} s (--idle-timeout)"
                raise errors.ChannelTimeout(doing, uri=self._connection.uri, cause=why)
        return None
