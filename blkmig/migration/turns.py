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


class _Call:
    """A call, and the thread that makes it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.lasts = threading.Lock()  # held as long as the call lasts


class Turn:
    """Whose turn it is. Any thread may ask for it; a fork's child never gets its parent's.

    An interrupt may end a call of the main thread between any two bytecodes. So the thread stands in the call before
    anybody can see it: wherever one comes, who leaves in this thread does not wait for itself. And the turn is given
    back by the ``with`` of a lock, and not by a ``try`` behind ``acquire``, between which an interrupt is heard.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the change of the next one
        self._call: _Call | None = None  # which had the turn last, and has it as long as it lasts
        self._pid = os.getpid()

    @contextlib.contextmanager
    def taken(self, state: Callable[[], str], required: str) -> Iterator[None]:
        """Have the turn for a ``with``. Raises :class:`~blkmig.errors.StateError` if another call has it.

        The other one may be this thread's: the caller's function that is told of progress is called from within.
        """
        call = _Call()
        with call.lasts:
            with self._lock if self._pid == os.getpid() else contextlib.nullcontext():  # a child may have it held
                is_free = self._call is None or not self._call.lasts.locked()
                if is_free:
                    self._call = call
            if not is_free:
                message = "another call is at it, in another thread or around this one: one call at a time"
                raise errors.StateError(message, state=state(), required=required)
            yield

    def end_others(self, cancel: Callable[[], None]) -> None:
        """Cancel a call of another thread, if one is at it, and wait until it has returned. Blocks."""
        call = self._call
        if self._pid != os.getpid() or call is None or call.thread == threading.get_ident() or not call.lasts.locked():
            return
        cancel()
        if call.lasts.acquire(timeout=LEAVE_SECONDS):
            call.lasts.release()
