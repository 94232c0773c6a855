# SPDX-License-Identifier: GPL-2.0-or-later
"""A writer that a test has in its hand: a thread that makes one write for each step."""

from __future__ import annotations

import queue
import random
import threading
from typing import Protocol, Self

from .. import errors, units
from . import faults


class Disk(Protocol):
    """What is written."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write, and mark it dirty."""


class StepWriter:
    """Writes `disk` from a thread of its own, as a guest does: at random, from `seed`, but only when a test says so.

    A write may stand still for as long as a migration holds the writers; the other calls return meanwhile. Use it in a
    ``with``; leaving waits for the write that is under way, so let held writers go on before.
    """

    def __init__(self, disk: Disk, *, seed: int = 0, nbytes: int = 4096) -> None:
        self.written: list[tuple[int, bytes]] = []
        """The writes that were made, (offset, bytes), in their order."""

        self.error: errors.DeviceError | None = None
        """What the disk has said to the writer that it turned away; then nothing is written any more."""

        self._disk, self._rng, self._nbytes = disk, random.Random(seed), min(units.place("nbytes", nbytes), disk.size)
        self._failure: BaseException | None = None  # set by the thread before it says that a step is done
        self._steps: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="blkmig-step-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        self._steps.put(None)
        self._thread.join(faults.SECONDS)
        if self._thread.is_alive():
            raise TimeoutError("a writer stands still: somebody forgot to release it")
        if exc is None:
            self._raise_failure()

    def start(self) -> threading.Event:
        """Have the next write made; return what is set when it was, or was refused."""
        if self._thread.ident is None:
            raise RuntimeError("a StepWriter writes within its with")
        done = threading.Event()
        self._steps.put(done)
        return done

    def write(self, count: int = 1) -> None:
        """Make so many writes. Blocks until they are made; raises TimeoutError if one is not within `SECONDS`.

        What the disk raises is raised here, but for the DeviceError of a disk that turns writers away: see `error`.
        """
        for _ in range(count):
            if not self.start().wait(faults.SECONDS):
                raise TimeoutError("the write is not made: the writers are held, or the disk stands still")
            self._raise_failure()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self) -> None:
        while (done := self._steps.get()) is not None:
            if self.error is None:
                self._write()
            done.set()

    def _write(self) -> None:
        offset = self._rng.randrange(self._disk.size - self._nbytes + 1)
        data = self._rng.randbytes(self._nbytes)
        try:
            self._disk.pwrite(data, offset)
        except errors.DeviceError as error:
            self.error = error
        except BaseException as error:
            self._failure = error
        else:
            self.written.append((offset, data))
