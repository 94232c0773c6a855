# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the source of a session comes again: it is listened to as long as the session lasts.

::

    loading thread   link 1 ── lost ─── next ───────────────────► link 2 ───────
    blkmig-lobby     ... a connection that begins with the session ─┘ link 1 is broken off, whatever it does

Whoever comes must begin with the key of the session. The same process of the source has a higher number than on all
links before. Who says that it does not come again ends the session. Another process of the source, which resumes, has a
higher incarnation; it is the last one that this lobby takes, for with it everything begins anew (see `loading`). All
others are told why they are not taken, and closed. A source comes again because it believes the link to be lost, or the
process before to be dead. This end may not know that yet, or not find out for minutes, so the old link is broken off at
once: what has arrived on it may still be read, nothing else.

**One source.** Incarnations only ever grow, and one that is not higher than that of the link which is read is never
taken: so of two processes with one session, whichever came first, the older one is told to end, and of two equal ones
the second.

Who owns what: `_lock` guards the newest number and the breaker of the link that is being read. A link and its breaker
belong to this thread until they are in the queue, then to the loading thread. Numbers only ever grow, so a link in the
queue is always newer than the one that is being read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator

from .. import channel, errors, logs, savevm, threads
from . import gathering, refusing

log = logs.Logger(__name__)

QUIET_SECONDS = 1.0
"""A source that comes again, or says that it does not, needs less: nobody is told that it is waited for."""

RETRY_SECONDS = 1.0
"""How long to wait before the next try where no connection can be taken, as without a descriptor."""


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """A connection of the source: `session` is what it has said first."""

    f: channel.InputQEMUFile
    session: savevm.Session
    breaker: channel.Breaker
    resumes: bool
    """It is another process of the source, and its stream begins behind our answer."""

    def drop(self) -> None:
        """Close what nobody wants any more."""
        self.f.abort()
        self.breaker.close()


class TakenOver(Exception):
    """Another process of the source resumes, on the connection of `arrival`."""

    def __init__(self, arrival: Arrival) -> None:
        super().__init__("another process of the source resumes")
        self.arrival = arrival


class Lobby:
    """Takes the connections of `session` that come to `listener`, whose first one is `f`.

    `goes_on` is whether a process of the source goes on with its stream when the link is lost. Otherwise only another
    one comes. `refusal` says why none can, "" if one can; any thread calls it.
    """

    def __init__(
        self,
        listener: channel.Listener,
        session: savevm.Session,
        f: channel.InputQEMUFile,
        *,
        incarnation: int,
        goes_on: bool,
        refusal: Callable[[], str],
    ) -> None:
        # Set here, then read-only; but the loading thread sets `goes_on` once the source that resumes has a session.
        self._listener = listener
        self._key = session.key
        self._incarnation = incarnation
        self.goes_on = goes_on
        self._refusal = refusal
        # How a connection begins that is looked at; the loading thread adds one.
        self._magics = [savevm.QEMU_VM_FILE_MAGIC, savevm.AGAIN_MAGIC, savevm.RESUME_MAGIC]
        self._others: queue.SimpleQueue[channel.InputQEMUFile | None] = queue.SimpleQueue()
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        # The thread's own.
        self._refused = refusing.Refused()
        # Guarded by `_lock`.
        self._lock = threading.Lock()
        self._newest = session.attempt
        self._breaker = f.breaker()
        # Set once, by whoever ends it.
        self._is_closed = threading.Event()
        self._has_successor = False
        self._thread = threads.Thread(target=self._run, name="blkmig-lobby", daemon=True)
        self._thread.start()

    # -- the loading thread --------------------------------------------------------------------------------------------

    def next(self, seconds: float, say: Callable[[], None]) -> Arrival | None:
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
                arrived.drop()
                arrived = self._arrivals.get()
            if arrived is None:
                return None
            self._replace_breaker(arrived.breaker)
        return arrived

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
                if (other := self._others.get_nowait()) is not None:
                    other.abort()

    def stop_receiving(self) -> None:
        """Have the loading thread find the end of the link that it reads. From any thread."""
        with self._lock:
            if self._breaker is not None:
                self._breaker.stop_receiving()

    def break_off(self) -> None:
        """End both directions of the link that is read, whoever waits there. From any thread."""
        with self._lock:
            if self._breaker is not None:
                self._breaker.break_off()

    def say_last(self, data: bytes, seconds: float) -> None:
        """Say `data` on the link that is read, if nothing else can be said on it. From any thread."""
        with self._lock:
            if self._breaker is not None:
                self._breaker.say_last(data, seconds)

    def end(self) -> None:
        """Have the thread end, without waiting for it: nobody is to come again."""
        self._is_closed.set()
        if not self._has_successor:
            self._listener.cancel()

    def close(self) -> None:
        """End the thread and stop listening, unless another process of the source needs that. Twice does no harm."""
        self.end()
        self._thread.join()
        while not self._arrivals.empty():
            if (arrived := self._arrivals.get()) is not None:
                arrived.drop()
        self._drop_others()
        with self._lock:
            self._replace_breaker(None)
        if not self._has_successor:
            self._listener.close()

    def _replace_breaker(self, breaker: channel.Breaker | None) -> None:
        if self._breaker is not None:
            self._breaker.close()
        self._breaker = breaker

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not (self._is_closed.is_set() or self._has_successor):
                try:
                    self._take_one()
                except errors.Cancelled:
                    break
                except errors.MigrationError as error:
                    log.warning("a source that comes again cannot be taken: %s", error)
                    self._is_closed.wait(RETRY_SECONDS)
        finally:
            self._refused.close()
            self._others.put(None)  # whoever waits there hears a cancel, too
            if not self._has_successor:
                self._arrivals.put(None)

    def _take_one(self) -> None:
        """Wait for one connection that is looked at, and hand it over if it is a newer one of the session."""
        short = savevm.QEMU_VM_FILE_MAGIC, savevm.HEADER_NBYTES
        try:
            f = self._listener.accept(
                timeout=self._refused.seconds, magics=self._magics, nbytes=savevm.AGAIN_NBYTES, short=short, keep=True
            )
        except errors.ChannelTimeout:
            self._refused.close()
            return
        if f.starts_with(savevm.QEMU_VM_FILE_MAGIC):
            self._refused.tell(f, refusing.BUSY)
        elif f.starts_with(savevm.AGAIN_MAGIC) or f.starts_with(savevm.RESUME_MAGIC):
            self._take_session(f, resumes=f.starts_with(savevm.RESUME_MAGIC))
        else:
            self._others.put(f)

    def _take_session(self, f: channel.InputQEMUFile, *, resumes: bool) -> None:
        with contextlib.ExitStack() as on_refusal:
            on_refusal.callback(f.abort)
            try:
                session = savevm.parse_again(f.get_buffer(savevm.AGAIN_NBYTES))
            except errors.StreamError:
                return  # no blkmig says that
            why_not = self._why_not(session, resumes=resumes)
            if why_not is not None:
                on_refusal.pop_all()
                self._refused.tell(f, why_not)
                return
            breaker = f.breaker()
            assert breaker is not None
            on_refusal.callback(breaker.close)
            with self._lock:
                if not resumes and session.attempt <= self._newest:
                    return
                self._newest = session.attempt
                self._has_successor = resumes
                if session.seconds or resumes:
                    on_refusal.pop_all()
                    self._arrivals.put(Arrival(f, session, breaker, resumes))
                else:
                    self._arrivals.put(None)
                if self._breaker is not None:
                    self._breaker.break_off()

    def _why_not(self, session: savevm.Session, *, resumes: bool) -> refusing.Why | None:
        """Return why who says that is not taken; None if it may be."""
        if session.key != self._key:
            return refusing.BUSY
        if resumes:
            if session.incarnation <= self._incarnation:
                return refusing.OLDER
            why_not = self._refusal()
            return refusing.Why(why_not) if why_not else None
        if session.incarnation != self._incarnation:
            return refusing.superseded(self._incarnation)
        return None if self.goes_on or not session.seconds else refusing.OLDER
