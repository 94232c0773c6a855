# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that write a disk at random while it moves."""

from __future__ import annotations

import abc
import contextlib
import random
import threading
from collections.abc import Iterable
from typing import Self

import blkmig
from blkmig import errors


class WriterThreads(abc.ABC):
    """A thread for each of the `seeds`, from entering to leaving, or until it is turned away.

    What went wrong otherwise they put into `failures`, which are none when it is left.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.failures: list[BaseException] = []
        self.stop = threading.Event()
        self._threads = [
            threading.Thread(target=self.write_until_stopped, args=(random.Random(seed),), daemon=True)
            for seed in seeds
        ]

    @abc.abstractmethod
    def write_until_stopped(self, rng: random.Random) -> None:
        """Write until `stop` is set. Runs in each of the threads."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a writer hangs: somebody forgot to release it"
        assert not self.failures


class SteadyWriter(WriterThreads):
    """Writes the first `nbytes` of `disk` at random, a little at a time, until the disk has moved."""

    def __init__(self, disk: blkmig.BlockBackend, seed: int, nbytes: int) -> None:
        super().__init__([seed])
        self._disk, self._nbytes = disk, nbytes

    def write_until_stopped(self, rng: random.Random) -> None:
        with contextlib.suppress(errors.DeviceError):  # it has moved
            while not self.stop.wait(0.002):
                nbytes = rng.choice((512, 4096, 65536))
                self._disk.pwrite(rng.randbytes(nbytes), rng.randrange(self._nbytes))
