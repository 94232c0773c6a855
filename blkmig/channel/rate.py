# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast bytes may leave: a bucket whose level is kept as a moment in time.

::

        now - BURST_SECONDS          now         paid_at
    ────────┴─────────────────────────┴─────────────┴────────► time
            credit an idle sender keeps   debt: wait

`charge` moves ``paid_at`` by the time that the bytes are worth at the present rate; a sender whose ``paid_at`` lies in
the future waits for it. Sleeping too long gives credit and sending too much makes debt, so nothing is lost or won in
the long run: over any window of T seconds at most rate * (T + BURST_SECONDS) bytes and one slice leave, 1.8 % more than
the rate over five seconds. Debt is time: bytes sent at one rate are paid at that rate, whatever the rate is now.

Any thread may write `rate` at any time; everything else belongs to the sending thread. No lock: `rate` is one word, and
it is read once per charge.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import units

BURST_SECONDS = 0.07
"""What an idle or late sender may catch up: covers a badly timed wake-up, and keeps bursts short."""

SLICES_PER_SECOND = 50
"""A payload leaves in pieces of 20 ms each, so that a slow link carries an even stream."""

MIN_SLICE = 512
MAX_SLICE = units.MiB


class RateLimiter:
    """A rate in bytes per second, 0 for none, and the debt of one sender. `clock` gives seconds and never goes back."""

    __slots__ = ("_clock", "_paid_at", "rate")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = 0
        self._clock = clock
        self._paid_at = 0.0

    def charge(self, nbytes: int) -> None:
        """Put `nbytes` that have left on the account; without a rate they are free."""
        rate = self.rate
        if rate:
            self._paid_at = max(self._paid_at, self._clock() - BURST_SECONDS) + nbytes / rate

    def delay(self) -> float:
        """Return the seconds until the debt is paid, 0.0 if there is none."""
        return max(0.0, self._paid_at - self._clock()) if self.rate else 0.0

    def slice_nbytes(self) -> int:
        """Return how many bytes may leave in one piece at the present rate."""
        return min(max(self.rate // SLICES_PER_SECOND, MIN_SLICE), MAX_SLICE)
