# SPDX-License-Identifier: GPL-2.0-or-later
"""Looking every second whether a disk still is what it was when it was opened, whatever the migration is doing.

A snapshot, a block job or a new size make the copy of a disk worthless, and bulk may take hours. So a thread asks QEMU
for its block graph now and then: about 1 ms of QEMU's time in a second.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from .. import errors
from . import graph

INTERVAL = 1.0
ANSWER_SECONDS = 2.0
"""A QEMU that takes longer is simply asked again. Those who need its answers decide what is too long."""


class Surveillance:
    """A thread that looks until it is closed, or has found something; what it has found is `error`.

    `ask` begins to ask QEMU, unless that would be in the way just now (then it returns None), and returns what waits
    for the answer. `check` raises if something is wrong.
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
        # Set by the thread, and only once.
        self.error: errors.MigrationError | None = None
        threading.Thread(target=self._watch, name="blkmig-qemu-watch", daemon=True).start()

    def close(self) -> None:
        """Look no more. Does not wait for an answer that is under way; twice does no harm."""
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
            if not self._is_over.is_set():  # else it is our own exports that are gone
                self.error = error
