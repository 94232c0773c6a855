# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver that has a session tells those whom it does not take, before it closes their connections.

They are told in ERROR and SHUT, which any blkmig hears at any time. A process whose session another one has taken over
is told by SESSION, with the number of that one: ERROR would say that the disks were not taken, and nobody knows that.
Who closes a connection with unread bytes resets it, and what was said is lost; so those that were told are kept open
for a moment, a few at a time.
"""

from __future__ import annotations

import contextlib
import errno
from typing import Final, NamedTuple

from .. import channel, errors, savevm

SECONDS: Final = 1.0
"""How long a connection is kept open that was told why it is not taken."""

MOST: Final = 4
"""How many are, at most."""


class Why(NamedTuple):
    """Why a connection is not taken."""

    text: str
    incarnation: int = 0
    """That of the process that has taken over, where the connection is of one before it."""


BUSY: Final = Why(
    "another migration has begun at this receiver: it is under way, or waits for its sender, or for one that says "
    "--resume where that one was: it has left the session's key beside its disks. For any other one, also where "
    "nothing can be resumed (--incremental), end this receiver first, and start it again"
)
OLDER: Final = Why("another sender goes on with this migration: only one can, and it is not this one")


def superseded(incarnation: int) -> Why:
    """Return why an older process of the source is not taken."""
    return Why("another sender has taken over", incarnation)


class Refused:
    """The connections that were told, and are still open. One thread's."""

    def __init__(self) -> None:
        self._open: list[channel.InputQEMUFile] = []

    @property
    def seconds(self) -> float | None:
        """Return how long they may stay open; None if there are none."""
        return SECONDS if self._open else None

    def tell(self, f: channel.InputQEMUFile, why: Why) -> None:
        """Tell the source on `f`, which is kept open for a moment. Blocks for a moment at most, and never raises."""
        self._open.append(f)
        while len(self._open) > MOST:
            self._open.pop(0).abort()
        with contextlib.suppress(errors.MigrationError):
            f.set_idle_timeout(SECONDS)
            back = f.return_path()
            assert back is not None
            if why.incarnation:
                savevm.send_word(back, savevm.SessionAnswer(why.incarnation, 0, 0, takes_barriers=False, waits=False))
                return
            back.put_buffer(savevm.last_words(errno.EBUSY, savevm.Failure(why.text, errno.EBUSY)))
            back.flush()

    def close(self) -> None:
        """Close them. Twice does no harm."""
        while self._open:
            self._open.pop().abort()
