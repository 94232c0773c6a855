# SPDX-License-Identifier: GPL-2.0-or-later
"""Checking every second whether a disk is still what it was when it was opened, whatever the migration is doing.

A snapshot, a block job or a new size makes the copy of a disk worthless, and the bulk phase may take hours. So a thread
asks QEMU for its block graph now and then, which takes about 1 ms of QEMU's time in a second.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from .. import errors, threads
from . import graph

INTERVAL = 1.0
ANSWER_SECONDS = 2.0
"""Seconds to wait for the graph. A QEMU that takes longer is asked again later: this thread does not judge that."""


class Surveillance:
    """A thread that looks at the disks until it is closed, or until it has found something wrong: then `error` has it.

    `ask` begins to ask QEMU, and returns a function that waits for the answer; None if QEMU must not be disturbed just
    now. `check` raises if something is wrong.
    """

    def __init__(
        self,
        ask: Callable[[], Callable[..., graph.BlockGraph] | None],
        check: Callable[[graph.BlockGraph], None],
        *,
        interval: float = INTERVAL,
    ) -> None:
        self._ask = ask
        self._check = check
        self._interval = interval
        self._is_over = threading.Event()
        # The thread sets it, at most once.
        self.error: errors.MigrationError | None = None
        threads.Thread(target=self._watch, name="blkmig-qemu-watch", daemon=True).start()

    def close(self) -> None:
        """End the thread, without waiting for an answer that is under way. Twice does no harm."""
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(self._interval) and self.error is None:
            with contextlib.suppress(errors.MigrationError):  # of asking: QEMU is gone, or slow, or nobody wants it
                self._look()

    def _look(self) -> None:
        await_answer = self._ask()
        if await_answer is None:
            return
        facts = await_answer(ANSWER_SECONDS)
        try:
            self._check(facts)
        except errors.DeviceError as error:
            if not self._is_over.is_set():  # else blkmig has removed its own exports, and the graph has changed by that
                self.error = error
