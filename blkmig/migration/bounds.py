# SPDX-License-Identifier: GPL-2.0-or-later
"""The bounds of an outgoing migration: the caller's time-out, and that of its pause, whatever it waits for.

Between two sections a migration looks at its limits by itself. The watchdog is for a migration that is blocked: it does
what `cancel` does, and the error that the blocked call raises then names the limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .. import errors, params, units
from . import convergence, pause, watchdog

TIMEOUT_GRACE = 0.5
"""Seconds after the caller's time-out that a migration which is not blocked may take to notice it by itself."""


TICK_SHARE = 0.1
MIN_TICK = 0.02
"""A bound that has passed is noticed within a tenth of the pause's bound."""


class Bounds:
    """The watchdog of one migration, and what it has done; `cancel` ends whatever the migration waits for,
    `when_reached` is called behind that, with a limit."""

    def __init__(
        self,
        parameters: params.MigrationParameters,
        judge: convergence.Convergence,
        cancel: Callable[[], None],
        when_reached: Callable[[], object],
    ) -> None:
        # Set here, then read-only.
        self.watchdog = watchdog.Watchdog(max(MIN_TICK, parameters.downtime_bound * TICK_SHARE))
        self._parameters = parameters
        self._convergence = judge
        self._cancel, self._when_reached = cancel, when_reached
        # Any thread may set these.
        self._pause: pause.Pause | None = None
        self._limit_reached = ""

    def begin(self) -> None:
        """Count the caller's time-out from now on."""
        self.watchdog.start()
        if self._parameters.timeout is not None:
            self.watchdog.call_after(self._parameters.timeout + TIMEOUT_GRACE, self._time_is_over)

    @property
    def connect_timeout(self) -> float:
        """Return how long connecting may take: no longer than the whole, so that its error says what was missing."""
        whole = self._parameters.timeout
        return min(self._parameters.connect_timeout, self._parameters.connect_timeout if whole is None else whole)

    def close(self) -> None:
        """End the watchdog. Twice does no harm."""
        self.watchdog.close()

    def watch(self, held: pause.Pause) -> None:
        """Take note of the pause that begins; it has a bound of its own."""
        self._pause = held

    def reach_in_pause(self) -> None:
        """End what the migration waits for, because the bound of its pause has passed. From any thread."""
        self._reach("before the bound of the pause")

    @contextlib.contextmanager
    def saying_why(self) -> Iterator[None]:
        """Turn a Cancelled that the watchdog has caused into the NotConverged that names the limit."""
        try:
            yield
        except errors.Cancelled as error:
            if not self._limit_reached:
                raise
            self.count_given_up()
            raise self.why(error) from error

    def why(self, error: errors.Cancelled) -> errors.MigrationError:
        """Return what has ended the migration: the limit that was reached, else `error`."""
        return self._convergence.not_converged(self._limit_reached) if self._limit_reached else error

    @property
    def pause(self) -> pause.Pause | None:
        """Return the last pause, if there was one, and it was not given up."""
        return self._pause

    def count_given_up(self) -> None:
        """Count the last pause, once, if it was given up."""
        held = self._pause
        if held is not None and held.is_given_up:
            self._pause = None
            self._convergence.pause_given_up(held.downtime)

    def _time_is_over(self) -> None:
        """End whatever waits, because the caller's time-out is over; a pause that is under way ends by itself first."""
        if self._pause is not None and self._pause.is_bounded:
            self.watchdog.call_after(self._parameters.downtime_bound, self._time_is_over)
        else:
            self._reach(f"within {units.format_duration(self._parameters.timeout or 0.0)}")

    def _reach(self, limit: str) -> None:
        self._limit_reached = limit
        self._cancel()
        self._when_reached()
