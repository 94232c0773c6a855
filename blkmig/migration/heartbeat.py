# SPDX-License-Identifier: GPL-2.0-or-later
"""Signs of life for a source that waits: on the return path, while targets are opened or flushed.

::

    loading thread   TABLE ─ with Heartbeat: open all disks ─ REPLY ─ ... EOF ─ with Heartbeat: flush them ─ the word
    heartbeat thread         ALIVE   ALIVE   ALIVE  (joined)                    ALIVE   ALIVE  (joined)

Who has not asked for ALIVE gets PONG, with a number.

A beat never waits: where the link does not take it, or somebody else says something, it is left out. So the thread ends
within a moment of being told to.
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
    """Calls `beat` with `done` and `text` every second for the length of a ``with``, on a thread of its own.

    The loading thread counts in `done` what it has done, and says in `text` what it is at, for a source that wants to
    see progress. `beat` must not block. An error of `beat` ends the beats without a word: whoever uses the link next
    meets it.
    """

    def __init__(self, beat: Callable[[int, str], None]) -> None:
        self._beat = beat
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.done = 0
        self.text = ""

    def __enter__(self) -> Self:
        """Start the thread; without one to be had there are no signs of life."""
        thread = threading.Thread(target=self._run, name="blkmig-heartbeat", daemon=True)
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._thread = thread
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread, which has the return path no longer then."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(errors.MigrationError):
            while not self._ended.wait(BEAT_SECONDS):
                self._beat(self.done, self.text)
