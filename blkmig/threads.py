# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads, of which a system gives so many only: one that cannot be had is an error of ours."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from . import errors


class Thread(threading.Thread):
    """A thread as the standard library has it."""

    def start(self) -> None:
        """Begin it. Raises :class:`~blkmig.errors.NoThread`, which is a RuntimeError as well."""
        try:
            super().start()
        except RuntimeError as error:  # what Python makes of EAGAIN
            where = "see ulimit -u and -v, and the limits of the service or the container"
            raise errors.NoThread(f"no more threads can be had ({error}): {where}") from error


STEP_SECONDS = 3.0
"""How long each step of the end of a migration may take where its own thread hangs."""


def in_time(call: Callable[[], object], seconds: float) -> bool:
    """Make a call that may hang in a thread of its own, and return whether it has returned within `seconds`.

    Otherwise the thread, a daemon, is left in it. What the call raises is dropped.
    """
    has_returned = threading.Event()

    def run() -> None:
        with contextlib.suppress(BaseException):
            call()
        has_returned.set()

    try:
        Thread(target=run, name="blkmig-step", daemon=True).start()
    except errors.NoThread:  # then it is made as it is
        run()
    return has_returned.wait(seconds)
