# SPDX-License-Identifier: GPL-2.0-or-later
"""What kills an end at a chosen message: all that leaves an end by a Python call goes through `Striker`."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import select
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import forks
import kill_points
import pauses

from blkmig import channel, errors


class Plan(NamedTuple):
    """What is struck, and how it goes on."""

    kind: str
    """One of `kill_points.KINDS`."""

    end: str
    """Who says the message: "send" or "receive"."""

    message: str
    """As `kill_points` calls it, "" for a plain run."""

    nth: int
    is_after: bool
    """The message has left."""

    victim: str
    recovery: str
    """One of `kill_points.RECOVERIES`."""

    seed: int


def is_cancelled(f: channel.OutputQEMUFile) -> bool:
    """Return whether nothing can be put any more, because somebody has cancelled."""
    try:
        f.flush()
    except errors.Cancelled:
        return True
    return False


class Striker:
    """Names, counts and keeps what this process says, and at the message of `plan` kills the victim.

    All that was said before has left by then, and behind the message, that has left, too. A receiver counts from
    RESUMED on, where a sender resumes: what came before was for another one.
    """

    def __init__(self, place: pathlib.Path, end: str, plan: Plan) -> None:
        self._place, self._end, self._plan = place, end, plan
        self._counts: dict[str, int] = {}
        self._strikes = plan.end == end
        kind = kill_points.KINDS[plan.kind]
        self._loses_at = kind.loses_at if end == "send" else ""
        self._stops_at = "FLUSH" if end == "send" and kind.is_stopped else ""
        self._waits_for = "RESUMED" if end == "receive" and kind.is_resumed else ""
        for method, name in kill_points.BLOCKS.items():
            self._wrap(method, lambda *_, name=name: name)
        self._wrap("put_buffer", lambda data, *_: kill_points.name_of(end, bytes(data)))

    def _wrap(self, method: str, name_of: Callable[..., str]) -> None:
        original = getattr(channel.OutputQEMUFile, method)

        @functools.wraps(original)
        def put(f: Any, *args: Any) -> Any:
            name = name_of(*args)
            is_struck = bool(name) and self._count(name)
            if is_struck and not self._plan.is_after:
                self._strike(f)
            result = original(f, *args)
            if is_struck and self._plan.is_after:
                self._strike(f)
            self._disturb(f, name)
            return result

        setattr(channel.OutputQEMUFile, method, put)

    def _disturb(self, f: Any, name: str) -> None:
        """Behind a message, do what this kind of migration meets there, once."""
        if name and name == self._loses_at:
            self._loses_at = ""
            f.flush()
            forks.lose_the_link()
        if name and name == self._stops_at:
            self._stops_at = ""
            os.kill(os.getpid(), signal.SIGTERM)
            pauses.until(lambda: is_cancelled(f))  # another thread does that

    def _count(self, name: str) -> bool:
        """Count a message; return whether it is the one."""
        if self._waits_for and name != self._waits_for:
            return False
        self._waits_for = ""
        self._counts[name] = count = self._counts.get(name, 0) + 1
        with (self._place / f"{self._end}.said").open("a") as file:
            file.write(f"{name}\n")
        return self._strikes and (name, count) == (self._plan.message, self._plan.nth)

    def _strike(self, f: Any) -> None:
        """Kill the victim, and be sure that it is dead before anything more is said."""
        with contextlib.suppress(Exception):  # a link that is lost by now takes nothing
            f.flush()
        (self._place / "struck").touch()
        pid = int((self._place / f"{self._plan.victim}.pid").read_text())
        if pid == os.getpid():
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([fd], [], [])
            os.close(fd)
