# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of awaited migrations share: a disk that is told of a cancel, one that listens, threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any

import lab
import pauses

import blkmig
from blkmig import stats

MIB = lab.MIB
LONG = 30.0  # seconds that nothing here takes
CONTENT = os.urandom(3 * MIB)


class Told(blkmig.MemoryBackend):
    """A disk that says when a migration of it was cancelled."""

    def __init__(self, content: bytes = CONTENT) -> None:
        super().__init__(bytearray(content), name="d")
        self.is_cancelled = threading.Event()

    def cancel(self) -> None:
        super().cancel()
        self.is_cancelled.set()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, LONG))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("blkmig-asend", "blkmig-areceive")]


def check_threads_end() -> None:
    """They have told their end, and may be about to return."""
    pauses.until(lambda: not threads())


class Listening:
    """An `on_progress` of a receiver; `wait` returns when it listens."""

    def __init__(self) -> None:
        self._loop, self._listens = asyncio.get_running_loop(), asyncio.Event()

    def __call__(self, event: stats.Event) -> None:
        if isinstance(event, stats.StatusChanged):
            self._loop.call_soon_threadsafe(self._listens.set)

    async def wait(self) -> None:
        await asyncio.wait_for(self._listens.wait(), LONG)
