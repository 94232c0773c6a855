# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread that calls what is due, for a migration that may be blocked anywhere.

It looks at its alarms every `tick` seconds, and nobody wakes it: an alarm is set just before a pause, and a thread that
is woken then wants the interpreter, so that the migration thread waits for it and a writer gets in before the pause. A
block that is sent costs the watchdog nothing. An alarm that is due is called in a thread of its own, so that a long
call holds up no other one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .. import errors, threads


class Alarm:
    """A function that is to be called at a moment of ``time.monotonic``."""

    __slots__ = ("at", "call")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call


class Watchdog:
    """Calls functions when their time has come, or up to `tick` seconds later.

    Any thread may set alarms; signal handlers may not.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        # Under `_changed`, which is notified of the end.
        self._changed = threading.Condition()
        self._alarms: list[Alarm] = []
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def start(self) -> None:
        """Have the thread run, so that the first alarm need not wait for that. Twice does no harm."""
        with self._changed:
            if self._thread is None and not self._is_closed:
                self._thread = threads.Thread(target=self._run, name="blkmig-watchdog", daemon=True)
                self._thread.start()

    def call_after(self, seconds: float, call: Callable[[], None]) -> Alarm:
        """Have `call` called in `seconds`, unless `forget` or `close` come first. It must not raise."""
        alarm = Alarm(time.monotonic() + seconds, call)
        self.start()
        with self._changed:
            self._alarms.append(alarm)
        return alarm

    def forget(self, alarm: Alarm | None) -> None:
        """Call `alarm` no more; one that has been called already goes on."""
        with self._changed:
            if alarm in self._alarms:
                self._alarms.remove(alarm)

    def close(self) -> None:
        """Forget all alarms and end the thread. Twice does no harm."""
        with self._changed:
            self._is_closed = True
            self._alarms.clear()
            self._changed.notify()

    def _run(self) -> None:
        while (alarm := self._next()) is not None:
            try:
                threads.Thread(target=alarm.call, name="blkmig-alarm", daemon=True).start()
            except errors.NoThread:  # a bound that is kept late is better than none
                alarm.call()

    def _next(self) -> Alarm | None:
        """Wait for the next alarm that is due and take it; None when there will be none."""
        with self._changed:
            while not self._is_closed:
                alarm = min(self._alarms, key=lambda alarm: alarm.at, default=None)
                if alarm is not None and alarm.at <= time.monotonic():
                    self._alarms.remove(alarm)
                    return alarm
                self._changed.wait(self._tick)
        return None
