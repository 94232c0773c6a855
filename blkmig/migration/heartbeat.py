# SPDX-License-Identifier: GPL-2.0-or-later
"""Signs of life for a source that waits: on the return path, while targets are opened or flushed.

::

    loading thread   TABLE ─ with beats: open all disks ─ REPLY ─ ... END ─ with beats: flush them ─ READY
    heartbeat thread         ALIVE   ALIVE   ALIVE                               ALIVE   ALIVE

Who has not asked for ALIVE gets PONG, with a number.

The thread is started by the first ``with`` and stays, for END and COMMIT come in a pause, and to start one takes up to
a millisecond. A beat never waits: where the link does not take it, or somebody else says something, it is left out.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .. import errors

BEAT_SECONDS = 1.0
"""Between two signs of life; the shortest time-out that anybody is likely to give a peer is several of them."""


class Heartbeat:
    """Calls `beat` with `done` and `text` every second for the length of each ``with``, on a thread of its own.

    The thread that uses it counts in `done` what it has done, and says in `text` what it is at, for a source that wants
    to see progress. `beat` must not block. An error of `beat` ends the beats of that ``with`` without a word: whoever
    uses the link next meets it. Whoever makes one closes it.
    """

    def __init__(self, beat: Callable[[int, str], None]) -> None:
        self.beat = beat
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._turn = threading.Lock()  # around a beat, and around what says whether there is to be one
        self._is_on = False
        self.done = 0
        self.text = ""

    def __enter__(self) -> Self:
        """Begin; without a thread to be had there are no signs of life."""
        with self._turn:
            self._is_on, self.done, self.text = True, 0, ""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="blkmig-heartbeat", daemon=True)
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the beats: nobody uses the return path here when this returns."""
        with self._turn:
            self._is_on = False

    def end(self) -> None:
        """Have the thread end, without waiting for it: there is nothing to say any more."""
        self._closed.set()

    def close(self) -> None:
        """End the thread. Twice does no harm."""
        self.end()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with self._turn:
                if self._is_on:
                    self._try()

    def _try(self) -> None:
        try:
            self.beat(self.done, self.text)
        except errors.MigrationError:
            self._is_on = False
