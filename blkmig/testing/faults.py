# SPDX-License-Identifier: GPL-2.0-or-later
"""What may go wrong at a disk, and when: the faults of :class:`~blkmig.testing.FaultyDisk`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Literal, get_args

from .. import units

SECONDS = 30.0
"""How long anything here waits for what a test makes happen; then it fails."""

Verb = Literal["read", "write", "zeroes", "flush", "hold"]
"""What of a disk fails: blocks and extents that are read or written, zeros that are written (holes that are punched),
flushes, and the wait for its writers."""


class Stop:
    """A place where a call stands still until a test lets it go on. Any thread may use it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        """Set as soon as a call stands here, for good."""

        self._goes_on = threading.Event()

    def wait_until_reached(self) -> None:
        """Return when a call stands here. Raises TimeoutError after `SECONDS`."""
        if not self.reached.wait(SECONDS):
            raise TimeoutError(f"no call has come to the stop within {SECONDS:g} s")

    def go_on(self) -> None:
        """Let the call go on, and all later ones pass."""
        self._goes_on.set()

    def stand(self, is_cancelled: Callable[[], bool]) -> bool:
        """Stand here; return whether it goes on, and was not cancelled. Raises TimeoutError after `SECONDS`."""
        self.reached.set()
        for _ in range(int(SECONDS / 0.01)):
            if is_cancelled():
                return False
            if self._goes_on.wait(0.01):  # a signal handler that cancels may take no lock, so nobody is woken by it
                return True
        raise TimeoutError(f"nobody let the call go on within {SECONDS:g} s")


_LEAST = {"nth": 1, "times": 1, "offset": 0, "short": 0, "corrupt": 0, "error": 1}
"""The numbers of a fault, and the least that each may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to certain calls of one verb of a disk: at least one of `stop`, `short`, `corrupt` and `error`.

    In this order: the call stands still, is done in part, damages what it reads or writes, fails.
    """

    verb: Verb
    """Which calls they are."""

    nth: int = 1
    """Which of the calls it happens to first, from 1; only those count that `offset` allows."""

    times: int | None = 1
    """To how many calls it happens from there on; None: to all of them."""

    offset: int | None = None
    """A byte of the disk: only calls that touch it."""

    stop: Stop | None = None
    """Where the call stands still. Cancelling the disk ends that, with ``Cancelled``."""

    short: int | None = None
    """So many bytes are read or written, and then the call fails, by default with EIO."""

    corrupt: int | None = None
    """The byte at this place of what is read or written is another one; a place behind the end is that of the last."""

    error: int | None = None
    """The ``errno`` that the call fails with."""

    def __post_init__(self) -> None:
        """Refuse faults that never happen, or do nothing: a test would pass that has tested nothing."""
        if self.verb not in get_args(Verb):
            raise ValueError(f"{self.verb!r} is no verb that fails: say one of {', '.join(get_args(Verb))}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            number = least if value is None and name != "nth" else units.whole(value)
            if number is None or number < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, not {value!r}")
        if self.stop is not None and not isinstance(self.stop, Stop):
            raise ValueError(f"stop must be a Stop, not {self.stop!r}")
        if self.offset is not None and self.verb not in ("read", "write", "zeroes"):
            raise ValueError(f"{self.verb}: only what is read or written has an offset")
        if self.stop is None and self.short is None and self.corrupt is None and self.error is None:
            raise ValueError("say what happens: stop, short, corrupt or error")
        if self.verb not in ("read", "write") and (self.short is not None or self.corrupt is not None):
            raise ValueError(f"{self.verb}: only what is read or written can be short or damaged")

    def touches(self, verb: Verb, offset: int | None, nbytes: int | None) -> bool:
        """Return whether a call counts for it."""
        if verb != self.verb:
            return False
        if self.offset is None:
            return True
        return offset is not None and nbytes is not None and offset <= self.offset < offset + nbytes

    def happens_to(self, number: int) -> bool:
        """Return whether it happens to the call of this number, from 1."""
        return number >= self.nth and (self.times is None or number < self.nth + self.times)
