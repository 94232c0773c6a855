# SPDX-License-Identifier: GPL-2.0-or-later
"""How often connections have failed to prove who they are, and how long the next one from the same place has to wait.

::

    failed from one place        0   1    2    3   4 ...
    the next one waits so long   0   0  0.25  0.5  1 s, never more

So of one place four handshakes are begun in a second, whoever is there, and the messages about them are as few. Nobody
is locked out: a stranger at the sender's own address (behind the same router, say) has it wait for a second. It is no
longer, because a connection that waits can be pushed out: four others of its place in that time do it.

A place is an address, or the /64 network of an IPv6 one, of which one host may have as many as it likes. The table has
a bounded number of places; the one that has failed longest ago makes room.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import networks

FIRST_SECONDS = 0.25
MOST_SECONDS = 1.0

FORGOTTEN_SECONDS = 60.0
"""A place from which nothing has failed for so long begins anew."""

MAX_PLACES = 256


class Refusals:
    """The tries that failed at one listener. One thread; `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        """Tries that have failed, from anywhere."""

        self.last_host = ""
        """Where the last one came from."""

        self._clock = clock
        self.places: dict[str, tuple[int, float]] = {}
        """How often from each place, and when it was last; the newest one is the last."""

    @property
    def notes(self) -> list[str]:
        """Return what whoever runs the receiver is to know of them, if there are any."""
        tries = "1 connection" if self.count == 1 else f"{self.count} connections"
        why = f"{tries} could not prove to be the sender's, the last one from {self.last_host}: see the messages"
        return [why] if self.count else []

    def note(self, host: str) -> str:
        """Note that a try of `host` has failed, and return what is to be said of the next one from there."""
        place = networks.place_of(host)
        times = self._times(place) + 1
        self.places.pop(place, None)
        if len(self.places) >= MAX_PLACES:
            del self.places[next(iter(self.places))]
        self.places[place] = (times, self._clock())
        self.count, self.last_host = self.count + 1, host
        seconds = _delay(times)
        return f"; {times} tries from there have failed, so the next one waits {seconds:g} s" if seconds else ""

    def forget(self, host: str) -> None:
        """Have nobody wait who comes from where `host` is: one of them has proved to be the sender's."""
        self.places.pop(networks.place_of(host), None)

    def seconds(self, host: str) -> float:
        """Return how long a connection that comes now from `host` has to wait."""
        place = networks.place_of(host)
        if not (times := self._times(place)):
            return 0.0
        return max(0.0, self.places[place][1] + _delay(times) - self._clock())

    def _times(self, place: str) -> int:
        times, last = self.places.get(place, (0, 0.0))
        return times if self._clock() - last < FORGOTTEN_SECONDS else 0


def _delay(times: int) -> float:
    return 0.0 if times < 2 else min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(times - 2, 30))
