# SPDX-License-Identifier: GPL-2.0-or-later
"""Answering a sender that compares its disks with the targets: a thread that reads them, hashes, and says DIGEST.

::

    loading thread    ASK 1   ASK 2    blocks, SAME ...   ASK 3                  never reads a target, never waits
                        └──┐    └──┐                        └──┐
    digest thread         read, hash ─ DIGEST 1 ─ read, hash ─ DIGEST 2 ─ ...

The two never use a disk at once: each takes `turn`, the lock of the disk, for one write, or for one block that is read.
So a digest is that of what all earlier records have made of the block, and `Vouched` takes note of it before any later
record changes that. A block that cannot be read has no digest: the sender sends it, and nothing else comes of it.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from .. import _core, errors, savevm, threads
from ..savevm import digestwords
from . import askwords, hashing, table, target

_Request = tuple[askwords.Ask, target.BlkLoadDevice, int]


class Answers:
    """Takes ASK and SAME; a thread answers, from the first ASK on. `say` takes an answer, and may block."""

    def __init__(self, say: Callable[[savevm.Digest], None]) -> None:
        self._say = say
        self._table: Sequence[table.TableDisk] = ()
        self._devices: Mapping[bytes, target.BlkLoadDevice] = {}
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # guards the next one
        self._outstanding = 0
        self._number = 0
        self._is_over = self._is_stopped = False

    def begin(self, disks: Sequence[table.TableDisk], devices: Mapping[bytes, target.BlkLoadDevice]) -> None:
        """Compare these disks, which are those of the stream; `devices` are where they go, by name."""
        self._table, self._devices = disks, devices
        for disk in disks:
            if disk.size:
                devices[disk.name].compare(disk.size)

    def ask(self, body: bytes, position: int) -> None:
        """Have an ASK answered. Does not wait.

        Raises :class:`~blkmig.errors.StreamError` for one that is damaged, or not due.
        """
        ask = askwords.parse_ask(body, self._table, position)
        self._number += 1
        with self._lock:
            self._outstanding += 1
            is_due = ask.number == self._number and self._outstanding <= askwords.MAX_ASKS
        if not is_due or self._is_over:
            raise errors.StreamError(
                f"ASK {ask.number} where {self._number} is due, with {askwords.MAX_ASKS} unanswered at most, and none "
                "at the end",
                position=position,
            )
        if self._thread is None:
            thread = threads.Thread(target=self._run, name="blkmig-digest", daemon=True)
            thread.start()
            self._thread = thread
        disk = self._table[ask.disk]
        self._requests.put((ask, self._devices[disk.name], disk.size))

    def same(self, body: bytes, position: int) -> None:
        """Take a SAME. Raises :class:`~blkmig.errors.StreamError` for one that is damaged, or that nothing vouches
        for."""
        index, ranges = askwords.parse_same(body, self._table, position)
        self._devices[self._table[index].name].load_same(ranges, position)

    def link_lost(self) -> None:
        """Forget what was asked on a link that was lost, and vouch for nothing that was answered; count ASKs anew.

        Nothing of an answer that was under way is said any more. Blocks for one block that is read.
        """
        self.stop()
        self._requests, self._number, self._outstanding = queue.SimpleQueue(), 0, 0
        self._is_over = self._is_stopped = False
        self.begin(self._table, self._devices)

    def stop(self) -> None:
        """Answer nothing any more, nor what was asked; else as `close`. Blocks for one block that is read."""
        self._is_stopped = True
        self.close()

    def close(self) -> None:
        """Answer what was asked, and nothing any more; return when the thread has ended, and uses no disk. Safe twice.
        """
        self._is_over = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._requests.put(None)
            thread.join()

    def _run(self) -> None:
        buf = _core.BlockBuffer("own")
        # Whoever loads the stream meets the same, or has given the link up already.
        with contextlib.suppress(errors.ChannelError, errors.Cancelled, errors.StateError):
            while (request := self._requests.get()) is not None:
                ask, device, size = request
                pieces = tuple(self._answer(ask, device, size, buf))
                if self._is_stopped:
                    break
                with self._lock:
                    self._outstanding -= 1  # before it is said: the next ASK may be there at once
                self._say(savevm.Digest(ask.number, pieces))

    def _answer(
        self, ask: askwords.Ask, device: target.BlkLoadDevice, size: int, buf: _core.BlockBuffer
    ) -> Iterator[digestwords.Piece]:
        """Yield what the disk holds in each piece; the pieces of one block are those of one read."""
        pieces = list(ask.pieces(size))
        for _, group in itertools.groupby(pieces, lambda piece: piece[0] // _core.BLOCK_SIZE):
            if self._is_stopped:
                return
            wanted = list(group)
            start, stop = wanted[0][0], sum(wanted[-1])
            try:
                is_zero = device.read_to_compare(buf, start, stop - start, vouches=ask.shift == askwords.SHIFTS[0])
            except errors.DeviceError:
                yield from [digestwords.UNREAD] * len(wanted)
                continue
            for offset, nbytes in wanted:
                view = buf.payload[offset - start : offset - start + nbytes]
                is_hole = is_zero or _core.buffer_is_zero(view)
                yield digestwords.ZEROS if is_hole else hashing.hash_of(view)
