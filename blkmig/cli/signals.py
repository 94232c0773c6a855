# SPDX-License-Identifier: GPL-2.0-or-later
"""INT, TERM and HUP, all three alike: the command cleans up and ends, and a user who insists can end it at once.

::

    at first      a signal raises Interrupted in the main thread                       (disks are being opened)
    cancelling    it calls cancel(), which ends whatever is blocked, C code, too       (the migration runs)
    afterwards    it is remembered, and disturbs nothing                               (everything is closed)

A thread of its own hears the signals. Python runs handlers only when the main thread is back from a call into a
library, which may take long. While the main thread is in a call to a file system that does not answer, the system
gives it no signal, nor to any other thread: it is pending, and the thread looks for that. The second signal is answered
with a message, and the third ends the process at once. Signals within a second count as one, because terminals and
supervisors send several. `overdue` ends a command that does not end itself.

A signal that the command inherited as ignored stays ignored: ``nohup blkmig ...`` outlives its terminal.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from .. import portable
from . import overdue

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

APART_SECONDS = 1.0
"""Signals that are closer than this count as one wish to end."""

LOOK_SECONDS = 1.0
"""How often the watching thread looks for signals that are pending because the main thread cannot take them."""

PATIENCE = 3
"""So many wishes end the process at once."""


class Interrupted(portable.Portable, BaseException):
    """One of the signals, raised in the main thread; everything is cleaned up on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"cancelled by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """The signals that one run of the command has heard, and what a signal does at present.

    `number` is that of the first signal, None if none came. Any thread may read and set the fields, each in one step.
    Whoever sets `number` looks at `_cancel` afterwards, and whoever sets `_cancel` looks at `number` afterwards: so one
    of the two notices the other.
    """

    def __init__(self, say: Callable[[str], None], leave: Callable[[int], object] = os._exit) -> None:
        self.number: int | None = None
        self.overdue = overdue.Overdue(lambda: self.number, leave)
        self._say = say
        self._leave = leave
        self._raises = True
        self._cancel: Callable[[], None] | None = None
        # The watching thread only.
        self._wishes = 0
        self._heard_at = 0.0
        self._pending: set[int] = set()
        self._blocked: set[int] = set()

    @contextlib.contextmanager
    def cancelling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Have a signal call `cancel`, from any thread, in the body of a ``with``; afterwards it is only remembered."""
        self._raises = False
        self._cancel = cancel
        if self.number is not None:
            cancel()
        try:
            yield
        finally:
            self._cancel = None

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Have a signal raise Interrupted again, in the body of a ``with``; at once, if one came before."""
        if self.number is not None:
            raise Interrupted(self.number)
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Do the main thread's part, as a signal handler: raise, but only once."""
        if self.number is None:
            self.number = number
        if self._raises:
            self._raises = False
            raise Interrupted(self.number)

    def hear(self, number: int, now: float) -> None:
        """Do the watching thread's part, when it hears a signal at `now` seconds."""
        if self.number is None:
            self.number = number
        if self._wishes and now - self._heard_at < APART_SECONDS:
            return
        self._wishes, self._heard_at = self._wishes + 1, now
        cancel = self._cancel
        if self._wishes == 1:
            if cancel is not None:
                cancel()
            self.overdue.wish()
        elif self._wishes == PATIENCE - 1:
            self._say("cleaning up; one more signal ends this at once, and leaves what is in use as it is")
        elif self._wishes >= PATIENCE:
            self._leave(128 + self.number)

    def watch(self, fd: int) -> None:
        """Hear signals from the wake-up descriptor until its other end is closed."""
        # What is blocked here is told as pending. What was blocked before, by who has started the command, stays so.
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        with contextlib.suppress(OSError):  # what the main thread does of a signal is left then
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            while True:
                if not poll.poll(LOOK_SECONDS * 1000):
                    self.look(time.monotonic())
                    continue
                numbers = os.read(fd, 64)
                if not numbers:
                    return
                for number in numbers:
                    self.take(number, time.monotonic())

    def look(self, now: float) -> None:
        """Hear, at `now` seconds, the signals that are pending because the main thread does not take them."""
        pending = signal.sigpending()
        for number in {each for each in SIGNALS if each in pending} - self._blocked - self._pending:
            self._pending.add(number)
            self.hear(number, now)

    def take(self, number: int, now: float) -> None:
        """Hear, at `now` seconds, a signal that the main thread has taken, unless it was heard while it was pending."""
        if number in self._pending:
            self._pending.remove(number)
        elif number in SIGNALS:
            self.hear(number, now)


_current: list[Signals] = []
"""The runs of the command that are under way. The last one counts: tests run one command within another."""


def current() -> Signals:
    """Return the signals of the run that is under way."""
    return _current[-1]


@contextlib.contextmanager
def handling(
    say: Callable[[str], None], leave: Callable[[int], object] = os._exit, *, is_own_process: bool
) -> Iterator[Signals]:
    """Handle the signals in the body of a ``with``; if the process is the command's own, until the process ends.

    Only the main thread can handle signals. In any other one this changes nothing.
    """
    signals = Signals(say, leave)
    _current.append(signals)
    with contextlib.ExitStack() as undo:
        undo.callback(_current.remove, signals)
        if threading.current_thread() is threading.main_thread():
            _install(signals, undo)
            if is_own_process:
                atexit.register(_ignore)
        try:
            yield signals
        finally:
            signals._raises = False
            signals.overdue.ended()
            if is_own_process:
                undo.pop_all()  # a signal between here and the end of the process changes nothing any more


def _ignore() -> None:
    """Ignore the signals: an interpreter that ends would give them back to the system, which kills the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _install(signals: Signals, undo: contextlib.ExitStack) -> None:
    """Handle the signals in the main thread, and in a thread that watches the wake-up descriptor.

    If there are no descriptors for that thread, or it cannot be had, the main thread alone handles them. A migration
    would not get any, either.
    """
    with contextlib.suppress(OSError, RuntimeError):
        _watch(signals, undo)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            undo.callback(signal.signal, number, signal.signal(number, signals.handle))


def _watch(signals: Signals, undo: contextlib.ExitStack) -> None:
    with contextlib.ExitStack() as failed:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        failed.callback(_close, reading)
        failed.callback(_close, writing)
        os.set_blocking(writing, False)  # as signal wants it
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        failed.callback(signal.set_wakeup_fd, before)
        thread = threading.Thread(target=signals.watch, args=(reading,), name="blkmig-signals", daemon=True)
        thread.start()
        failed.pop_all()
    undo.callback(_close, reading)
    undo.callback(thread.join)
    undo.callback(_close, writing)
    undo.callback(signal.set_wakeup_fd, before)


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # even then it is closed, and it held no data
        os.close(fd)
