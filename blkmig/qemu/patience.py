# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the callers of a QMP connection wait, and what ends their waits: a bound, a cancel, a QEMU that is silent.

::

    work       as long as the connection's time-out says, until somebody cancels
    leaving    what cleans up: after a cancel, too, and shorter then; once QEMU has not answered, nobody waits again
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from .. import errors
from . import qmperrors

LEAVING_SECONDS = 10.0
HURRY_SECONDS = 2.0
"""How long QEMU may take for a command that cleans up: while nobody waits, and after a cancel."""


class Patience:
    """That of all threads that use one connection to `device`; `timeout` is how many seconds a command may take."""

    def __init__(self, device: str, timeout: float) -> None:
        self._device = device
        self._timeout = timeout
        # Any thread may set this, only `renew` clears it.
        self._cancelled = False
        self._waiting: set[concurrent.futures.Future[Any]] = set()  # what a cancel ends; single operations only
        self._leaving = threading.local()  # `bound`: seconds that a command may take, in a thread that cleans up
        # Threads that clean up only.
        self.is_silent = False
        """Whether QEMU did not answer while we cleaned up: what we told it may be done late, or never."""

    def cancel(self) -> None:
        """End the waits for answers, and later ones; from any thread and any signal handler."""
        self._cancelled = True
        for future in list(self._waiting):
            future.cancel()

    def renew(self) -> None:
        """Forget a cancel."""
        self._cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled, and the calling thread does not clean up."""
        return self._cancelled and not self._is_leaving

    @property
    def _is_leaving(self) -> bool:
        return getattr(self._leaving, "bound", None) is not None

    def check(self) -> None:
        """Raise Cancelled if the calling thread's work was cancelled."""
        if self.is_cancelled:
            raise errors.Cancelled("the migration was cancelled")

    @contextlib.contextmanager
    def leaving(self, seconds: float | None) -> Iterator[None]:
        """Clean up in the body of a ``with``; see :meth:`~.qmp.QmpConnection.leaving`."""
        before = getattr(self._leaving, "bound", None)
        default = HURRY_SECONDS if self._cancelled else LEAVING_SECONDS
        self._leaving.bound = max(before or 0.0, default if seconds is None else seconds)
        try:
            yield
        finally:
            self._leaving.bound = before

    def bound(self, wait: float | None) -> float:
        """Return how many seconds a call may wait that asks for `wait`."""
        wait = self._timeout if wait is None else wait
        if not self._is_leaving:
            return wait
        return 0.0 if self.is_silent else min(wait, self._leaving.bound)

    def missed(self) -> None:
        """Take note of an answer that did not come."""
        if self._is_leaving:
            self.is_silent = True

    def await_answer(self, future: concurrent.futures.Future[Any], wait: float | None, doing: str) -> Any:
        """Return the result of what runs in the loop's thread; whatever ends the wait ends that, too."""
        wait = self.bound(wait)
        if not self._is_leaving:
            self._waiting.add(future)
        try:
            self.check()  # now that `cancel` would find it
            answer = future.result(wait)
        except concurrent.futures.CancelledError:
            self.check()
            raise qmperrors.gone_error(doing, self._device) from None
        except TimeoutError as error:  # it is concurrent.futures.TimeoutError, too
            future.cancel()
            self.missed()
            within = f" within {wait:g} s" if wait else ""
            cause = qmperrors.NO_ANSWER.format(within, self._device)
            raise qmperrors.QmpTimeout(doing, device=self._device, cause=cause) from error
        except BaseException:
            future.cancel()
            raise
        finally:
            self._waiting.discard(future)
        self.is_silent = False
        return answer
