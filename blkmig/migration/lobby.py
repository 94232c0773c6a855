# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the source of a session comes again: it is listened to as long as the session lasts.

::

    loading thread   link 1 ── lost ─── next ───────────────────► link 2 ───────
    blkmig-lobby     ... a connection that begins with the session ─┘ link 1 is broken off, whatever it does

Whoever comes must begin with the key of the session, and have a higher number than all before; see `channel.accepting`
for the others. Who says that it does not come again ends the session. A source comes again because it believes the
link to be lost. This end may not know that yet, or not find out for minutes, so the old link is broken off at once:
what has arrived on it may still be read, nothing else.

Who owns what: `_lock` guards the newest number and the breaker of the link that is being read. A link and its breaker
belong to this thread until they are in the queue, then to the loading thread. Numbers only ever grow, so a link in the
queue is always newer than the one that is being read.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from .. import channel, errors, logs, savevm
from . import gathering

log = logs.Logger(__name__)

QUIET_SECONDS = 1.0
"""A source that comes again, or says that it does not, needs less: nobody is told that it is waited for."""

RETRY_SECONDS = 1.0
"""How long to wait before the next try where no connection can be taken, as without a descriptor."""


class Lobby:
    """Takes the connections of `session` that come to `listener`, whose first one is `f`."""

    def __init__(self, listener: channel.Listener, session: savevm.Session, f: channel.InputQEMUFile) -> None:
        # Set here, then read-only.
        self._listener = listener
        self._again = savevm.AGAIN_MAGIC + session.key
        self._magics = [self._again]  # how a connection begins that is taken; the loading thread adds one
        self._others: queue.SimpleQueue[channel.InputQEMUFile] = queue.SimpleQueue()
        self._arrivals: queue.SimpleQueue[tuple[channel.InputQEMUFile, channel.Breaker] | None] = queue.SimpleQueue()
        # Guarded by `_lock`.
        self._lock = threading.Lock()
        self._newest = session.attempt
        self._breaker = f.breaker()
        # Set once, by whoever ends it.
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="blkmig-lobby", daemon=True)
        self._thread.start()

    # -- the loading thread --------------------------------------------------------------------------------------------

    def next(self, seconds: float, say: Callable[[], None]) -> channel.InputQEMUFile | None:
        """Wait for the link on which the source goes on; None if it does not come, or says that it does not.

        Blocks for `seconds` at most; calls `say` when it takes more than a moment. Whoever closes the listener, or
        cancels it, ends the wait.
        """
        moment = min(seconds, QUIET_SECONDS)
        try:
            arrived = self._arrivals.get(timeout=moment)
        except queue.Empty:
            say()
            try:
                arrived = self._arrivals.get(timeout=seconds - moment)
            except queue.Empty:
                return None
        with self._lock:
            while arrived is not None and not self._arrivals.empty():
                arrived[0].abort()
                arrived[1].close()
                arrived = self._arrivals.get()
            if arrived is None:
                return None
            self._replace_breaker(arrived[1])
        return arrived[0]

    @contextlib.contextmanager
    def taking(self, magic: bytes) -> Iterator[gathering.Next]:
        """Take also connections that begin with `magic` and have as many first bytes, one after the other."""
        self._magics.append(magic)

        def next_other(seconds: float) -> channel.InputQEMUFile | None:
            with contextlib.suppress(queue.Empty):
                return self._others.get(timeout=seconds)
            return None

        try:
            yield next_other
        finally:
            self._magics.remove(magic)
            self._drop_others()

    def _drop_others(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._others.get_nowait().abort()

    def stop_receiving(self) -> None:
        """Have the loading thread find the end of the link that it reads. From any thread."""
        with self._lock:
            if self._breaker is not None:
                self._breaker.stop_receiving()

    def say_last(self, data: bytes, seconds: float) -> None:
        """Say `data` on the link that is read, if nothing else can be said on it. From any thread."""
        with self._lock:
            if self._breaker is not None:
                self._breaker.say_last(data, seconds)

    def close(self) -> None:
        """End the thread and stop listening. Twice does no harm."""
        self._is_closed.set()
        self._listener.cancel()
        self._thread.join()
        while not self._arrivals.empty():
            if (arrived := self._arrivals.get()) is not None:
                arrived[0].abort()
                arrived[1].close()
        self._drop_others()
        with self._lock:
            self._replace_breaker(None)
        self._listener.close()

    def _replace_breaker(self, breaker: channel.Breaker | None) -> None:
        if self._breaker is not None:
            self._breaker.close()
        self._breaker = breaker

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_closed.is_set():
                try:
                    self._take_one()
                except errors.Cancelled:
                    break
                except errors.MigrationError as error:
                    log.warning("a source that comes again cannot be taken: %s", error)
                    self._is_closed.wait(RETRY_SECONDS)
        finally:
            self._arrivals.put(None)

    def _take_one(self) -> None:
        """Wait for one connection that begins with the session's key, and hand it over if it is a newer one."""
        f = self._listener.accept(timeout=None, magics=self._magics, nbytes=savevm.AGAIN_NBYTES, keep=True)
        if not f.starts_with(self._again):
            self._others.put(f)
            return
        with contextlib.ExitStack() as on_refusal:
            on_refusal.callback(f.abort)
            session = savevm.parse_again(f.get_buffer(savevm.AGAIN_NBYTES))
            breaker = f.breaker()
            assert breaker is not None
            on_refusal.callback(breaker.close)
            with self._lock:
                if session.attempt <= self._newest:
                    return
                self._newest = session.attempt
                if session.seconds:
                    on_refusal.pop_all()
                self._arrivals.put((f, breaker) if session.seconds else None)
                if self._breaker is not None:
                    self._breaker.break_off()
