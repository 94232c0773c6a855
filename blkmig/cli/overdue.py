# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a command that should have ended, and hangs in a call to a file system which does not answer.

::

    a signal, or --timeout     ├── cancelled: the command cleans up, and ends ── the usual way
    blkmig-overdue             └── waits ── a thread of the migration has not moved ── abandons it:
                                   the writers go on, the peer is told, the error is said, the process ends

Nothing interrupts such a call, so its thread is left in it. What it holds locks of, or would have cleaned up, is done
here as far as it can be; each step has a bound, because it may come to the same file system. What cannot be removed
there stays, as after SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .. import errors, hanging

    Abandon = Callable[[hanging.Call], errors.MigrationError | None]
    Say = Callable[[errors.MigrationError | None, hanging.Call], int]

SECONDS = 5.0
"""How long a thread stands in one call before it is taken for one that hangs."""

IN_DOUBT_LOOKS = 4
"""So many times as long it stands there where nobody could say afterwards who has the disks: a flush may take that."""

STEP_SECONDS = 2.0
"""How long one step may take, where it comes to a file system which does not answer either."""

SAY_SECONDS = 2.0
"""How long it may take to say how the command has ended: a terminal, or the file of a log, may not take that."""

NOT_WAITED_FOR = (
    *("blkmig-log", "blkmig-metrics", "blkmig-stall", "blkmig-progress", "blkmig-live", "blkmig-step"),
    *("blkmig-close", "blkmig-lookup", "blkmig-nbd-lookup"),
)
"""How the names of threads begin that may hang as they like: nobody waits for them without a bound."""


class Overdue:
    """Sees to it that one run of the command ends once that was wished. `leave` ends the process with an exit code.

    `number` returns the number of the signal that was heard, None if there was none.
    """

    def __init__(self, number: Callable[[], int | None], leave: Callable[[int], object]) -> None:
        self._number, self._leave = number, leave
        self.say: Say | None = None
        """Says how the command has ended, and returns its exit code; None before that can be said."""

        self.abandon: Abandon | None = None
        """Ends the migration of the command: it is told what hangs, releases what it can in bounded time, and returns
        the error that has ended it, None if it is complete. None before there is one; it stays behind its end, for
        closing the disks may hang as well."""

        self.is_in_doubt: Callable[[], bool] = lambda: False
        """Says whether nobody could say who has the disks if the migration was abandoned now."""

        self._lock = threading.Lock()  # held by who ends the command, to its end
        self._is_wished = False
        self._has_ended = threading.Event()

    def wish(self) -> None:
        """Have the process end in bounded time from now on. From any thread, but not from a signal handler."""
        with self._lock:
            is_first, self._is_wished = not self._is_wished, True
        if is_first:
            with contextlib.suppress(RuntimeError):  # there are no threads to be had
                threading.Thread(target=self._watch, name="blkmig-overdue", daemon=True).start()

    def ended(self) -> None:
        """Take note that the command ends by itself. Does not return if it is being ended already."""
        with self._lock:
            self._has_ended.set()

    def depart(self, code: int) -> None:
        """End the process at once, if its end was wished, and it would hang in closing what is still open."""
        if not self._is_wished and self._number() is None:
            return
        with contextlib.suppress(ImportError, OSError):  # of a file that cannot be opened any more
            from .. import hanging, threads

            if not threads.in_time(hanging.await_all, STEP_SECONDS):
                self._leave(code)

    def _watch(self) -> None:
        try:
            from .. import hanging
        except (ImportError, OSError):  # of a file that cannot be opened any more
            return
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # else commands that clean up would take none, either
        looks = dict.fromkeys(hanging.calls(), 0)
        while not self._has_ended.wait(SECONDS):
            looks = {call: looks.get(call, -1) + 1 for call in hanging.calls()}
            enough = IN_DOUBT_LOOKS if self.is_in_doubt() else 1
            standing = (call for call, count in looks.items() if count >= enough and _is_waited_for(call))
            if hung := sorted(standing, key=lambda call: call.verb not in hanging.MOVES):
                with self._lock:
                    if not self._has_ended.is_set():
                        self._end(hung[0])
                return

    def _end(self, hung: hanging.Call) -> None:
        """End the process."""
        from .. import errors, threads

        error: errors.MigrationError | None = errors.Cancelled("the command was cancelled")
        try:
            if self.abandon is not None:
                error = self.abandon(hung)
            elif error is not None:
                error.add_note(str(hung))
        finally:
            number, codes = self._number(), [0 if error is None else error.exit_code]
            if number is not None and isinstance(error, errors.Cancelled):
                codes = [128 + number]
            if (say := self.say) is not None:
                threads.in_time(lambda: codes.append(say(error, hung)), SAY_SECONDS)
            self._leave(codes[-1])


def _is_waited_for(call: hanging.Call) -> bool:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    return not names.get(call.thread, "").startswith(NOT_WAITED_FOR)


def leave(code: int) -> None:
    """End the process at once. Where a thread of it hangs in a file system, its open files are left to a child, which
    ends when that answers: the end of a process would wait for it, too. Those on other file systems are let go."""
    with contextlib.suppress(Exception):  # whatever is missing: it ends
        from .. import _leaving, hanging

        if hung := hanging.calls():
            no_files = [fd for fd, path in hanging.paths().items() if path.startswith(hanging.NOT_FILES)]
            _leaving.leave_files(no_files, hanging.apart_from(hung))
    os._exit(code)
