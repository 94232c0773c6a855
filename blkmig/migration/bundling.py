# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's side of a stream that is to go over several connections: how many, and opening them.

::

    START, or the beginning of a later link ─► BUNDLE ─► BUNDLE READY ─► connect, "blkB" ... ─► BUNDLED ─► chunks

One connection carries no more in a round trip than what the two systems let be under way: with Linux's 4 MiB of
``tcp_wmem`` some 2.8 MB, which at 50 ms is 55 MB/s. So by default there are more of them the longer the way is. Within
a machine, and in a local network, there is one, and nothing of this has any part in it.

All of it belongs to the migration thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from .. import block, channel, errors, logs, params, savevm, stats
from . import connection, questions

logger = logs.Logger(__name__)

ROUND_TRIP_SECONDS = 0.015
"""By default there is one more connection for each so many seconds of the round trip. Then each has 1.9 MB under way at
most at 1 Gbit/s, of the 2.8 that there can be."""

JOIN_SECONDS = 20.0
"""How long the target may take to say that it waits for the others, and that they are there, each. It says the first
of it at once, so that has the idle time-out, too."""

OPEN_SECONDS = 10.0
"""How long opening them may take, all together."""


class Bundling:
    """Has the stream of one migration go over as many connections as `parameters` say, on each of its links."""

    def __init__(
        self,
        parameters: params.MigrationParameters,
        handlers: block.BlockSaveHandlers,
        save_state: savevm.SaveState,
        link: connection.Connection,
        asked: questions.Questions,
        statistics: stats.OutgoingStatistics,
    ) -> None:
        # Set here, then read-only.
        self._chosen = parameters.connections
        self._idle_timeout = parameters.idle_timeout
        self._block = handlers
        self._savevm = save_state
        self._connection = link
        self._questions = asked
        self._stats = statistics
        # The migration thread only.
        self._lacking = ""

    def begin(self) -> None:
        """Open the others and have the stream go over all, where that is to be; nothing of a record is put. Blocks.

        Where it cannot be, the stream stays on one connection, and the statistics say why. Raises ChannelError if the
        link breaks.
        """
        self._stats.connections = 1
        count = self._count()
        if count == 1:
            return
        why_not = self._lacking or self._why_not() or self._open(savevm.Bundle(os.urandom(savevm.ID_NBYTES), count))
        if not why_not:
            self._stats.connections = count
        elif self._chosen != "auto" or self._connection.takes_several:
            note = f"the stream goes over one connection, not {count}: {why_not}"
            if note not in self._stats.notes:
                self._stats.notes.append(note)

    def _count(self) -> int:
        if self._chosen != "auto":
            return int(self._chosen)
        if not self._connection.takes_several or savevm.Ability.BUNDLE not in self._block.abilities:
            return 1
        return count_for(self._connection.f.round_trip())

    def _why_not(self) -> str:
        if not self._connection.takes_several:
            return f"{self._connection.uri} leads to a receiver once"
        if savevm.Ability.BUNDLE not in self._block.abilities or not self._questions.is_answered:
            return "the target does not take more"
        return ""

    def _open(self, bundle: savevm.Bundle) -> str:
        """Open the others, and return why the target does not have all of them; "" if it has."""
        with self._connection.explaining_errors():
            self._savevm.send_command(self._connection.f, savevm.MIG_CMD_BUNDLE, bundle.encode())
        self._questions.await_bundled(min(self._idle_timeout or JOIN_SECONDS, JOIN_SECONDS), is_ready=True)
        others: list[channel.OutputQEMUFile] = []
        try:
            why_not = self._connect(bundle, others)
            count = self._questions.await_bundled(JOIN_SECONDS, is_ready=False).connections
            if count == bundle.connections and not why_not:
                self._split(others)
                return ""
            if count != 1:
                raise errors.StreamError(f"the target has {count} connections, of which nobody knows", position=0)
        except BaseException:
            abort(others)
            raise
        abort(others)
        return why_not or "the target has not taken them all in time"

    def _split(self, others: list[channel.OutputQEMUFile]) -> None:
        """Have the stream go over all. What this process lacks for that, descriptors for instance, it lacks for the
        next link, too, and the target has begun with them: the link is lost once, and not again and again."""
        try:
            with self._connection.explaining_errors():
                channel.split(self._connection.f, others)
        except errors.ChannelError as error:
            self._lacking = error.why
            raise

    def _connect(self, bundle: savevm.Bundle, others: list[channel.OutputQEMUFile]) -> str:
        """Open the others, and have each say what it is; return why not all are open, "" if they are."""
        end = time.monotonic() + OPEN_SECONDS
        try:
            for index in range(1, bundle.connections):
                f = self._connection.open_another(timeout=max(end - time.monotonic(), 0.001))
                others.append(f)
                f.put_buffer(bundle.preface(index))
                f.flush()
        except errors.ChannelError as error:
            logger.warning("another connection could not be opened: %s", error)
            return str(error)
        return ""


def count_for(round_trip: float | None) -> int:
    """Return over how many connections a stream goes whose link has a round trip of so many seconds, or an unknown."""
    return 1 if round_trip is None else min(savevm.MAX_COUNT, 1 + int(round_trip / ROUND_TRIP_SECONDS))


def abort(files: Sequence[channel.OutputQEMUFile]) -> None:
    """Drop connections that are not used."""
    for f in files:
        f.abort()
