# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the callers of a QMP connection wait, and what ends their waits: a bound, a cancel, a QEMU that is silent.

::

    work       up to the connection's time-out, or until somebody cancels
    leaving    cleaning up: after a cancel it waits, too, but shorter; once QEMU did not answer, nobody waits any more
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
"""Seconds that QEMU may take for a command that cleans up: usually, and after a cancel, when somebody waits."""


class Patience:
    """The patience of all threads that use one connection to `device`; `timeout` is the seconds for a command."""

    def __init__(self, device: str, timeout: float) -> None:
        self._device = device
        self._timeout = timeout
        # Any thread may set this, only `renew` clears it.
        self._cancelled = False
        self._waiting: set[concurrent.futures.Future[Any]] = set()  # what a cancel ends; single operations only
        self._leaving = threading.local()  # `bound`: seconds that a command may take, in a thread that cleans up
        # Threads that clean up only.
        self.is_silent = False
        """Whether QEMU did not answer while blkmig cleaned up. It may run those commands late, or never."""

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
        """Whether somebody has cancelled, and the calling thread is not cleaning up."""
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
        """Note that an answer did not come."""
        if self._is_leaving:
            self.is_silent = True

    def await_answer(self, future: concurrent.futures.Future[Any], wait: float | None, doing: str) -> Any:
        """Return the result of a coroutine in the loop's thread. If the wait ends early, the coroutine is cancelled."""
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
