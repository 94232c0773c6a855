# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread that does something once a second, beside a migration and never in its way."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Self

PATIENCE_SECONDS = 2.0
"""How long the end waits for a thread that may be blocked, in a file system that hangs."""

SHARE = 0.004
"""The part of a processor that ticks may take: figures of 200 disks take milliseconds."""


def pause_after(cpu_seconds: float, *, seconds: float) -> float:
    """Return how long to wait after a tick that took so much of a processor: `seconds`, or as long as makes it its
    share."""
    return max(seconds, cpu_seconds / SHARE)


class Ticking:
    """Calls `tick` at once, every `seconds`, and a last time at the end; for the length of a ``with``.

    Ticks that take long come less often, see `SHARE`.

    The thread is a daemon. One that is blocked at the end is left alone after `PATIENCE_SECONDS`.
    """

    def __init__(self, name: str, *, seconds: float = 1.0, patience: float = PATIENCE_SECONDS) -> None:
        # Set here, then read-only.
        self.seconds = seconds
        self._patience = patience
        self._has_to_end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_started = False

    def __enter__(self) -> Self:
        """Start the thread; where none can be had, there are no ticks."""
        with contextlib.suppress(RuntimeError):
            self._thread.start()
            self._is_started = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Have the last tick done."""
        self._has_to_end.set()
        if self._is_started:
            self._thread.join(self._patience)
            if self._thread.is_alive():
                self.left_behind()

    def tick(self) -> None:
        """Do it once."""
        raise NotImplementedError

    def left_behind(self) -> None:
        """Say that the last tick is not done in time."""

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._has_to_end.is_set()
            before = time.thread_time()
            self.tick()
            if not is_last:
                self._has_to_end.wait(pause_after(time.thread_time() - before, seconds=self.seconds))
