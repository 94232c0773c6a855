# SPDX-License-Identifier: GPL-2.0-or-later
"""The events that QEMU sends: they are kept until somebody waits for them, or told to a listener."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from . import patience, qmperrors

KEPT = ("BLOCK_EXPORT_DELETED",)
"""The events that are kept. All others are dropped, so that memory does not grow."""

MOST_KEPT = 1024

Found = TypeVar("Found")
Event = Mapping[str, Any]


class Events:
    """The events of one connection to `device`. The loop's thread calls `hear` and `end`, any thread the rest."""

    def __init__(self, device: str, limits: patience.Patience) -> None:
        self._device = device
        self._patience = limits
        self._changed = threading.Condition()  # guards the others; re-entrant, for `wake` in a signal handler
        self._kept: collections.deque[Event] = collections.deque(maxlen=MOST_KEPT)
        self._listeners: list[tuple[frozenset[str], Callable[[Event], None]]] = []
        self._is_over = False

    def wait(self, name: str, matches: Callable[[Event], bool], wait: float | None) -> Event:
        """Return the first event `name` whose data `matches`, and forget it; see `wait_for`."""

        def look() -> Event | None:
            for event in self._kept:
                if event["event"] == name and matches(event.get("data", {})):
                    self._kept.remove(event)
                    return event
            return None

        return self.wait_for(look, name, wait)

    def wait_for(self, look: Callable[[], Found | None], what: str, wait: float | None) -> Found:
        """Call `look` after each event until it returns something other than None, and return that."""
        wait = self._patience.bound(wait)
        deadline = time.monotonic() + wait
        doing = f"waiting for {what}"
        with self._changed:
            while (found := look()) is None:
                if self._is_over:
                    raise qmperrors.gone_error(doing, self._device)
                self._patience.check()
                if (left := deadline - time.monotonic()) <= 0:
                    self._patience.missed()
                    raise qmperrors.QmpTimeout(doing, device=self._device, cause=f"it did not come in {wait:g} s")
                self._changed.wait(left)
        return found

    def listen(self, names: Iterable[str], call: Callable[[Event], None]) -> None:
        """Call `call` with each event of these `names`, in the loop's thread."""
        with self._changed:
            self._listeners.append((frozenset(names), call))

    def drop(self, name: str, matches: Callable[[Event], bool]) -> None:
        """Forget the events `name` that came so far, and whose data `matches`."""
        with self._changed:
            kept = [each for each in self._kept if each["event"] != name or not matches(each.get("data", {}))]
            self._kept.clear()
            self._kept.extend(kept)

    def hear(self, event: Event) -> None:
        """Keep or tell an event."""
        name = event["event"]
        with self._changed:
            if name in KEPT:
                self._kept.append(event)
            for names, call in self._listeners:
                if name in names:
                    call(event)
            self._changed.notify_all()

    def end(self) -> None:
        """Note that no more events will come."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    @property
    def are_over(self) -> bool:
        """Whether no more events will come."""
        with self._changed:
            return self._is_over

    def wake(self) -> None:
        """Make all waiting threads check whether they may go on waiting."""
        with self._changed:  # whoever holds it does not wait
            self._changed.notify_all()
