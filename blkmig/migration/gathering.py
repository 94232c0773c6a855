# SPDX-License-Identifier: GPL-2.0-or-later
"""The target's side of a stream that is to go over several connections: take the others, and answer.

::

    BUNDLE ─► BUNDLE READY ─► the others come ─► BUNDLED: all of them, and chunks follow, or 1

Others who connect meanwhile are strangers, as ever: see `channel.accepting`. If not all are there in time, the stream
stays on its first connection. A source that gives up meanwhile ends that one. Loading thread only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from .. import channel, errors, logs, savevm

logger = logs.Logger(__name__)

GATHER_SECONDS = 10.0
"""How long the others may take to come, all together."""

LOOK_SECONDS = 0.1
"""Between two looks whether the source is still there, which says nothing before it has its answer."""

Next = Callable[[float], channel.InputQEMUFile | None]
"""Waits so many seconds for a connection, and returns it, or None."""


def abilities(listener: channel.Listener) -> savevm.Ability:
    """Return what HELLO offers of it: nothing of it where one connection alone leads to this receiver."""
    return savevm.OURS if listener.takes_several else savevm.OURS & ~savevm.Ability.BUNDLE


class Entrance:
    """Where the others come if there is no lobby: the listener, at which nobody else waits."""

    def __init__(self, listener: channel.Listener) -> None:
        self._listener = listener

    @contextlib.contextmanager
    def taking(self, magic: bytes) -> Iterator[Next]:
        """Take connections that begin with `magic`, one after the other."""
        magics = [magic]

        def next_one(seconds: float) -> channel.InputQEMUFile | None:
            with contextlib.suppress(errors.ChannelTimeout):
                return self._listener.accept(timeout=seconds, magics=magics, nbytes=savevm.PREFACE_NBYTES, keep=True)
            return None

        yield next_one


def take(
    bundle: savevm.Bundle, f: channel.InputQEMUFile, say: Callable[[savevm.Bundled], None], others: Next
) -> None:
    """Gather the other connections of `f`, whose source wants them, and have it come over all of them. Blocks.

    Raises :class:`~blkmig.errors.ChannelError` if `f` breaks, and Cancelled.
    """
    say(savevm.Bundled(bundle.connections, is_ready=True))
    found = _gather(bundle, f, others)
    count = 1
    with contextlib.ExitStack() as unused:
        for other in found.values():
            unused.callback(other.abort)
        if f.has_more:
            raise errors.StreamError("something follows a BUNDLE before its answer", position=f.position)
        if len(found) == bundle.connections - 1:
            try:
                channel.join(f, [found[index] for index in sorted(found)])
                unused.pop_all()
                count = bundle.connections
            except errors.ChannelError as error:
                logger.warning("the stream stays on one connection: %s", error)
    say(savevm.Bundled(count, is_ready=False))


def _gather(
    bundle: savevm.Bundle, first: channel.InputQEMUFile, others: Next
) -> dict[int, channel.InputQEMUFile]:
    """Return those that come in time, by their index; nobody is waited for once the `first` one has ended."""
    found: dict[int, channel.InputQEMUFile] = {}
    end = time.monotonic() + GATHER_SECONDS
    try:
        while len(found) < bundle.connections - 1 and (left := end - time.monotonic()) > 0:
            if (f := others(min(left, LOOK_SECONDS))) is None:
                if first.wait_readable(0):
                    break
                continue
            index = bundle.index_of(f.get_buffer(savevm.PREFACE_NBYTES))
            if index is None or index in found or f.has_more:
                logger.warning("a connection from %s was closed: it is none of those that are to come", f.uri)
                f.abort()
            else:
                found[index] = f
    except BaseException:
        for f in found.values():
            f.abort()
        raise
    return found
