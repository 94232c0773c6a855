# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk around another one, whose verbs fail as they are told to."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from .. import _core, disk, errors
from ..disk import storage
from . import faults


class FaultyDisk(disk.BlockBackend):
    """The disk `inner`, any kind of source or target, with faults; everything else is as there.

    Whatever `inner` has besides, such as ``pwrite``, is here, too. Pages of a file are not lent past the faults, so
    blocks are read and written through this object. Closing it closes `inner`.
    """

    def __init__(self, inner: disk.BlockBackend, *injected: faults.Fault) -> None:
        if not isinstance(inner, disk.BlockBackend):
            raise errors.WrongType(f"{inner!r} is no open disk: open it first, as open_disk does")
        self.inner = inner
        self.calls: collections.Counter[faults.Verb] = collections.Counter()
        """How often each verb was called, by anybody."""

        self._lock = threading.Lock()  # guards the counts: up to 16 threads read
        self._faults: list[tuple[faults.Fault, list[int]]] = []
        self._is_cancelled = False
        for fault in injected:
            self.inject(fault)
        self.name, self.size, self.files = inner.name, inner.size, inner.files
        self.is_read_only, self.is_written = inner.is_read_only, inner.is_written
        self.reads_in_parallel, self.awaits_switchover = inner.reads_in_parallel, inner.awaits_switchover
        self.min_granularity, self.is_growable = inner.min_granularity, inner.is_growable
        self.flushes_beside = inner.flushes_beside

    def __getattr__(self, name: str) -> Any:
        """Return what only the disk inside has."""
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    # -- faults: any thread ------------------------------------------------------------------------------------------

    def inject(self, fault: faults.Fault) -> None:
        """Add a fault; the calls that it counts begin now."""
        if not isinstance(fault, faults.Fault):
            raise errors.WrongType(f"a fault must be a Fault, not {fault!r}")
        with self._lock:
            self._faults.append((fault, [0]))

    def heal(self) -> None:
        """Forget all faults. Calls that stand still go on to do so."""
        with self._lock:
            self._faults.clear()

    def _happening(self, verb: faults.Verb, offset: int | None = None, nbytes: int | None = None) -> list[faults.Fault]:
        """Count a call; return what happens to it, after it has stood still where it was told to."""
        found = []
        with self._lock:
            self.calls[verb] += 1
            for fault, count in self._faults:
                if fault.touches(verb, offset, nbytes):
                    count[0] += 1
                    if fault.happens_to(count[0]):
                        found.append(fault)
        for fault in found:
            if fault.stop is not None and not fault.stop.stand(lambda: self._is_cancelled):
                raise errors.Cancelled(f"disk {self.name!r}: cancelled at a stop")
        return found

    def _fail(self, happening: list[faults.Fault], doing: str, offset: int | None = None, n: int | None = None) -> None:
        """Raise if the call fails."""
        for fault in happening:
            code = errno.EIO if fault.error is None and fault.short is not None else fault.error
            if code is not None:
                cause = OSError(code, os.strerror(code))
                raise errors.DeviceError(doing, device=self.name, cause=cause, offset=offset, nbytes=n) from cause

    # -- contents ----------------------------------------------------------------------------------------------------

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block, as far as the faults allow."""
        happening = self._happening("read", offset, nbytes)
        if not any(fault.short is not None or fault.corrupt is not None for fault in happening):
            self._fail(happening, "cannot read", offset, nbytes)
            return self.inner.read_block(blk, offset, nbytes)
        one = _core.BlockBuffer("own")
        self.inner.read_block(one, offset, nbytes)
        count = _change(one.data, nbytes, happening)
        blk.data[:count] = one.data[:count]
        self._fail(happening, "cannot read", offset, nbytes)
        return blk.filled(nbytes)

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Write a block, as far as the faults allow."""
        happening = self._happening("write", offset, nbytes)
        if not any(fault.short is not None or fault.corrupt is not None for fault in happening):
            self._fail(happening, "cannot write", offset, nbytes)
            self.inner.write_block(blk, offset, nbytes)
            return
        one = _core.BlockBuffer("own")
        one.data[:nbytes] = blk.payload[:nbytes]
        count = _change(one.data, nbytes, happening)
        one.filled(count)
        if count:
            self.inner.write_block(one, offset, count)
        self._fail(happening, "cannot write", offset, nbytes)

    def write_zeroes(self, offset: int, nbytes: int) -> None:
        """Write zeros, unless that fails."""
        self._fail(self._happening("zeroes", offset, nbytes), "cannot write zeros", offset, nbytes)
        self.inner.write_zeroes(offset, nbytes)

    def flush(self) -> None:
        """Flush, unless that fails."""
        self._fail(self._happening("flush"), "cannot flush")
        self.inner.flush()

    def flush_drained(self) -> None:
        """Flush what was drained, unless that fails."""
        self._fail(self._happening("flush"), "cannot flush")
        self.inner.flush_drained()

    def hold_writers(self) -> None:
        """Hold the writers, unless that fails."""
        self._fail(self._happening("hold"), "cannot hold its writers")
        self.inner.hold_writers()

    def open_reader(self, *, is_target: bool) -> storage.StorageReader | None:
        """Return a second reader where the disk inside has one; what it reads fails likewise."""
        reader = self.inner.open_reader(is_target=is_target)
        if reader is None:
            return None
        reader.close()
        return storage.BackendReader(self)

    # -- as the disk inside ------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Rest."""
        self.inner.rest()

    def drain(self) -> None:
        """Drain."""
        self.inner.drain()

    def resize(self, size: int) -> None:
        """Resize both."""
        self.inner.resize(size)
        self.size = self.inner.size

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Return where data may be."""
        return self.inner.next_data(offset)

    def zeroes_end(self, offset: int) -> int:
        """Return where zeros end."""
        return self.inner.zeroes_end(offset)

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Return what the top layer holds."""
        return self.inner.next_allocated(offset, nbytes)

    def forget_extents(self) -> None:
        """Look again."""
        self.inner.forget_extents()

    def create_dirty_bitmap(self, granularity: int) -> disk.DirtyBitmap:
        """Track the writes of the disk inside."""
        return self.inner.create_dirty_bitmap(granularity)

    def release_dirty_bitmap(self, bitmap: disk.DirtyBitmap) -> None:
        """Stop tracking."""
        self.inner.release_dirty_bitmap(bitmap)

    def sync_dirty(self) -> None:
        """Bring the marks up to date."""
        self.inner.sync_dirty()

    def release_writers(self, *, refuse: bool = False) -> None:
        """Let the writers go on, or turn them away."""
        self.inner.release_writers(refuse=refuse)

    def throttle_writers(self, fraction: float) -> bool:
        """Slow the writers down."""
        return self.inner.throttle_writers(fraction)

    def written_bytes(self) -> int | None:
        """Return how much was written."""
        return self.inner.written_bytes()

    def about_to_move(self) -> bool:
        """Take note that the disk moves."""
        return self.inner.about_to_move()

    def leave_in_doubt(self) -> None:
        """Leave the writers held."""
        self.inner.leave_in_doubt()

    def check_source(self) -> None:
        """Look whether the copy is still worth something."""
        self.inner.check_source()

    def cancel(self) -> None:
        """End what waits in either disk, also at a stop."""
        self._is_cancelled = True
        self.inner.cancel()

    @contextlib.contextmanager
    def block_use(self, reason: str) -> Iterator[None]:
        """Keep other migrations off both disks."""
        with super().block_use(reason), self.inner.block_use(reason):
            self._is_cancelled = False
            yield

    def close(self) -> None:
        """Close the disk inside."""
        self.inner.close()


def _change(data: memoryview, nbytes: int, happening: Iterable[faults.Fault]) -> int:
    """Damage `data` as the faults say; return how much of it is read or written."""
    count = nbytes
    for fault in happening:
        if fault.corrupt is not None and nbytes:
            data[min(fault.corrupt, nbytes - 1)] ^= 0xFF
        if fault.short is not None:
            count = min(count, fault.short)
    return count
