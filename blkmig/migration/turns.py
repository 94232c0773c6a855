# SPDX-License-Identifier: GPL-2.0-or-later
"""One call at a time drives a migration, and nobody closes what a call in another thread still uses.

Two that send sections at once would mix two streams into one, and each could take the other's end for its own. Who
leaves the ``with`` while another thread is at it cancels that call, and waits until it has returned.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from .. import errors

LEAVE_SECONDS = 60.0
"""How long who leaves waits for a call that was cancelled; all that such a call waits for has bounds below that."""


class Turn:
    """Whose turn it is. Any thread may ask for it; a fork's child never gets its parent's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held by the call that drives
        self._owner = 0
        self._pid = os.getpid()

    @contextlib.contextmanager
    def taken(self, state: Callable[[], str], required: str) -> Iterator[None]:
        """Have the turn for a ``with``. Raises :class:`~blkmig.errors.StateError` if another call has it.

        The other one may be this thread's: the caller's function that is told of progress is called from within.
        """
        if not self._lock.acquire(blocking=False):
            message = "another call is at it, in another thread or around this one: one call at a time"
            raise errors.StateError(message, state=state(), required=required)
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = 0
            self._lock.release()

    def end_others(self, cancel: Callable[[], None]) -> None:
        """Cancel a call of another thread, if one is at it, and wait until it has returned. Blocks."""
        if self._pid != os.getpid() or not self._lock.locked() or self._owner == threading.get_ident():
            return
        cancel()
        if self._lock.acquire(timeout=LEAVE_SECONDS):
            self._lock.release()
