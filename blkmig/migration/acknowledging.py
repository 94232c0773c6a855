# SPDX-License-Identifier: GPL-2.0-or-later
"""The barriers of an incoming session: what came before one is brought to stable storage while the stream goes on.

::

    loading thread   records ─ BARRIER n: drain ─ records ─ records ─ BARRIER n + 1 ─ ...
    blkmig-barrier               flush each disk that had a record ─ ACK n

**An ACK says that everything before its barrier is on stable storage.** The loading thread has handed all of it to the
system when it passes the barrier on (`drain`), so whatever `flush_drained` does after that includes it; that later
payloads are written meanwhile takes nothing away from it.

**A disk is flushed if a record of it was counted since the last ACK, and not otherwise.** That is enough: each record
that writes to a disk, or lets stand what it holds (SAME, and zeros where zeros are: who wrote them need not have
flushed them), makes one of the disk's counts larger, once it has taken effect. A count becomes smaller in one place:
a lost link takes back those of the last ACK, at which all that was counted had been flushed; what came since, the
source sends again, and it counts again. So counts that equal those of the last ACK mean that nothing is to be claimed
of the disk but what was claimed then. A barrier that was not acknowledged changes nothing: the next one compares with
the last ACK, not with it. The end of the stream flushes every disk, whatever was counted (`safekeeping`).

**One failed flush poisons the session.** The kernel marks pages clean that it could not write, and says so once, so the
next flush would lie. The thread ends with the first error, nothing is acknowledged after it, and the loading thread
raises that error: before the next section, before any other flush, or at once, since it is woken.

Who owns what: `_lock` guards everything that both threads change. It is a leaf: nobody waits under it, but in
`_changed`. The thread calls no other verb of a disk than `flush_drained`; the disks stay open until `close`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .. import block, errors, threads
from . import heartbeat


class Mark(NamedTuple):
    """How far the stream was at a barrier."""

    number: int = 0
    packs: int = 0
    """Packs of all disks that had come."""

    proofs: int = 0
    """Records PROOF that had come."""

    counts: tuple[tuple[block.BlkLoadDevice, block.CoverageCounts, int], ...] = ()
    """Of each disk what was counted, and how many bytes were the same as before."""


class Acknowledger:
    """Flushes `devices` at each barrier, and then calls `say` with its number.

    `beat` gives signs of life while a flush takes long. `wake` has the loading thread come to `check`. Both, and `say`,
    are called by the thread here.
    """

    def __init__(
        self,
        devices: Sequence[block.BlkLoadDevice],
        *,
        say: Callable[[int], None],
        beat: Callable[[int, str], None],
        wake: Callable[[], None],
    ) -> None:
        # Set here, then read-only.
        self._devices = devices
        self._say = say
        self._beats = heartbeat.Heartbeat(beat)  # the thread's, but for its end
        self._wake = wake
        self._jobs: queue.SimpleQueue[tuple[Mark, list[block.BlkLoadDevice]] | None] = queue.SimpleQueue()
        # Loading thread only.
        self._thread: threading.Thread | None = None
        # Guarded by `_lock`.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._last = Mark(counts=_counts_of(devices))
        self._pending: Mark | None = None
        self._unfinished = 0
        self._error: Exception | None = None

    # -- the loading thread --------------------------------------------------------------------------------------------

    @property
    def can_flush(self) -> bool:
        """Whether all disks can be flushed while they are written."""
        return all(device.backend.flushes_beside for device in self._devices)

    def barrier(self, number: int, packs: int, proofs: int, position: int) -> None:
        """Take barrier `number`, before which so many packs and proofs came. Blocks until what was put off is written.

        Raises :class:`~blkmig.errors.StreamError` for a number out of order, and a barrier that came too early.
        """
        self.check()
        with self._lock:
            if self._pending is not None or number != self._last.number + 1:
                raise errors.StreamError(f"BARRIER {number} where {self._last.number + 1} is due", position=position)
            before = self._last.counts
        mark = Mark(number, packs, proofs, _counts_of(self._devices))
        touched = [counted[0] for counted, last in zip(mark.counts, before, strict=True) if counted != last]
        for device in touched:
            with device.turn:
                device.backend.drain()
        self._start()
        with self._lock:
            self._pending = mark
            self._unfinished += 1
        self._jobs.put((mark, touched))

    def check(self) -> None:
        """Raise what a flush has raised."""
        if self._error is not None:
            raise self._error

    @property
    def is_flushing(self) -> bool:
        """Whether a barrier is not acknowledged yet."""
        return self._unfinished > 0

    def settle(self) -> None:
        """Wait until no flush is under way, and raise what one has raised. Blocks."""
        with self._changed:
            while self._unfinished and self._error is None:
                self._changed.wait()
        self.check()

    def rewind(self) -> Mark:
        """Forget a barrier that is not acknowledged, because the link was lost; return the last one that is.

        A flush that is under way ends as it may, and is not acknowledged: its number will be that of another barrier.
        """
        self.check()
        with self._lock:
            self._pending = None
            return self._last

    def end(self) -> None:
        """Have the threads end, without waiting for them: no barrier comes any more."""
        self._jobs.put(None)
        self._beats.end()

    def close(self) -> None:
        """End the thread, after the flush that is under way. Twice does no harm."""
        self.end()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        self._beats.close()

    def _start(self) -> None:
        if self._thread is None:
            thread = threads.Thread(target=self._run, name="blkmig-barrier", daemon=True)
            thread.start()
            self._thread = thread

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            mark, touched = job
            try:
                with self._beats as beats:
                    for device in touched:
                        device.backend.flush_drained()
                        beats.done += 1
            except Exception as error:
                self._fail(error)
                return
            if self._acknowledge(mark):
                with contextlib.suppress(errors.MigrationError):  # a link that broke: the loading thread meets it, too
                    self._say(mark.number)

    def _acknowledge(self, mark: Mark) -> bool:
        """Take note that a barrier is on stable storage; False if the link was lost since, and it does not count."""
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()
            if self._pending is not mark:
                return False
            self._last, self._pending = mark, None
            return True

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
        self._wake()


def _counts_of(
    devices: Sequence[block.BlkLoadDevice],
) -> tuple[tuple[block.BlkLoadDevice, block.CoverageCounts, int], ...]:
    return tuple((device, device.coverage.counts(), device.statistics.same_bytes) for device in devices)
