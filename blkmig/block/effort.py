# SPDX-License-Identifier: GPL-2.0-or-later
"""How much compressing is worth, by what the link and the workers were seen to do.

::

    order    | 7 | 6 | 5 | 4 |   the link takes what is ahead in `ahead / link_rate` seconds;
               ▲                 a frame of 7 is there in `(queued + 7) / rate` seconds: is that in time?

A payload is compressed only if its frame is there when the link comes to it, so the link never waits for workers. Where
they would be in time for too little of what the link carries, nothing is compressed but one payload now and then, which
tells how fast they are by then: on a fast link all processors are for the payloads themselves.

What a receiver makes of frames shows only in how fast a disk is sent. So now and then the other way is tried for two
windows, without frames or with them, and kept if that was clearly faster.

The level goes up while the workers are idle for most of the time, and down while they are late. A step after which less
of the disks was sent than before is taken back.

Everything but `level`, which workers read, belongs to the migration thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LEVELS: Final = (-1, 1, 3)
FIRST: Final = 1

RATE: Final = 400e6
"""Bytes per second of one worker, before anything is known."""

WINDOW_SECONDS: Final = 0.25
WINDOW_BYTES: Final = 16 << 20
"""What is seen is judged after so long, and so many bytes of the disks: a few blocks tell nothing of a slow link."""

HOLD_WINDOWS: Final = 4
BACK_WINDOWS: Final = 40
"""So many windows the level stays as it is after a step, and after one that was taken back."""

WORTH: Final = 0.5
"""Compressing is worth it where the workers can do so much of what the link carries."""

LOOK_SECONDS: Final = 2.0
LOOK_SHARE: Final = 100
"""Where it is not worth it, one payload is compressed after so long, to see whether it is by now; and after so many
times what that took."""

FIRST_TRIAL: Final = 1
TRIAL_EVERY: Final = 80
TRIAL_WINDOWS: Final = 2
"""A trial begins behind so many windows, at first and later on. Only its last window counts: before that, the link, and
the receiver, still have what was sent the other way."""

FASTER: Final = 1.2
"""A trial has won if so much more was sent."""

IDLE, LATE, LOSS = 0.25, 0.5, 0.97


class Effort:
    """What one stream has seen. With `always`, all that shrinks is compressed."""

    def __init__(self, *, always: bool, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.level = LEVELS[FIRST]
        self.link_rate = 0.0
        """Bytes per second that the link takes; 0 while that is not known."""

        self.rate = RATE * workers
        """Bytes of payload per second that all workers together make frames of."""

        self.ratio = 0.5
        """Bytes of a frame for each byte that is to be compressed."""

        self._always = always
        self._workers = workers
        self._clock = clock
        self._mark = self._looked = clock()
        self._look_seconds = LOOK_SECONDS
        self._step = 0
        self._hold = HOLD_WINDOWS
        self._rate_before = self._rate_kept = 0.0
        self._is_on = False  # until it is seen what the link takes: on a fast one, frames cost from the first on
        self._until_trial, self._of_trial = FIRST_TRIAL, 0
        self._forget_window()

    def _forget_window(self) -> None:
        self._busy = self._waited = self._worked = 0.0
        self._payload = self._wire = self._asked = self._late = 0

    def is_worth_it(self) -> bool:
        """Return whether the workers are fast enough for this link to be of use, and frames make it faster."""
        return self._always or (self._is_on and self.rate >= WORTH * self.link_rate)

    def wants(self, nbytes: int, *, queued: int, ahead: int, hurries: bool) -> bool:
        """Return whether a payload is to be compressed that comes behind `queued` bytes for the workers, and behind
        `ahead` bytes for the link. If it `hurries`, the link is not to wait for workers, whatever was asked for."""
        if self._always and not (hurries and self.link_rate):
            return True
        if not self.is_worth_it():
            if not self._is_on or self._clock() - self._looked < self._look_seconds:
                return False
            self._looked = self._clock()
            return True
        is_in_time = (queued + nbytes) / self.rate <= ahead / self.link_rate
        self._asked += 1
        self._late += not is_in_time
        return is_in_time

    def worked(self, nbytes: int, frame: int | None, seconds: float) -> None:
        """Take note that a worker took so long to make a frame of so many bytes of `nbytes`, or to find that they do
        not shrink."""
        self._worked += seconds
        self.ratio += ((nbytes if frame is None else frame) / nbytes - self.ratio) / 8
        if frame is not None and seconds > 0:
            self.rate += (self._workers * nbytes / seconds - self.rate) / 8
            self._look_seconds = max(LOOK_SECONDS, LOOK_SHARE * seconds)

    def sends(self, payload: int, wire: int, waited: float) -> None:
        """Take note that `payload` bytes of a disk go to the link, as `wire` bytes, after a wait for the workers."""
        self._waited += waited
        self._mark = self._clock()
        self._payload += payload
        self._wire += wire

    def sent(self) -> None:
        """Take note that the link has taken them: what lies between two payloads is not its time."""
        self._busy += self._clock() - self._mark
        if self._payload >= WINDOW_BYTES and self._busy + self._waited >= WINDOW_SECONDS:
            self._end_window()

    def _end_window(self) -> None:
        seconds = self._busy + self._waited
        self.link_rate = self._wire / self._busy if self._busy else self.link_rate
        rate = self._payload / seconds
        if not self._try(rate) and self._is_on:
            self._choose_level(rate, self._worked / (seconds * self._workers))
        self._forget_window()

    def _try(self, rate: float) -> bool:
        """Begin or end a trial of the other way if it is time for that; return whether one goes on."""
        if self._of_trial:
            self._of_trial -= 1
            if not self._of_trial:
                self._is_on ^= rate < FASTER * self._rate_kept
                self._until_trial = TRIAL_EVERY
                self._step, self._hold = 0, HOLD_WINDOWS
            return True
        self._until_trial -= 1
        if self._until_trial > 0 or self._always:
            return False
        self._rate_kept, self._is_on, self._of_trial = rate, not self._is_on, TRIAL_WINDOWS
        return True

    def _choose_level(self, rate: float, share: float) -> None:
        """Choose the next level, after `rate` bytes of the disks a second, and workers busy for this share of it."""
        self._hold -= 1
        if self._step and self._hold == HOLD_WINDOWS - 2 and rate < LOSS * self._rate_before:
            self._go(-self._step, BACK_WINDOWS)
            self._step = 0
        elif self._hold <= 0:
            is_late = self._asked > 0 and self._late > LATE * self._asked
            self._step = -1 if is_late else int(0 < share < IDLE)
            self._rate_before = rate
            self._go(self._step, HOLD_WINDOWS)

    def _go(self, step: int, windows: int) -> None:
        place = min(max(LEVELS.index(self.level) + step, 0), len(LEVELS) - 1)
        self.level, self._hold = LEVELS[place], windows
