# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract of a disk: the one seam that every source and every target of a migration fits.

A plain file, a numpy array, an NBD export and a running QEMU differ only behind it.

Who calls what, and when::

    source   block_use ─ create_dirty_bitmap
             ─ { check_source, sync_dirty, next_data, next_allocated, read_block, forget_extents }*
             ─ [about_to_move] ─ hold_writers ─ sync_dirty ─ read_block* ─ sync_dirty
             ─ release_writers or leave_in_doubt ─ release_dirty_bitmap ─ unblock
    target   block_use ─ { write_block, write_zeroes, [drain, flush_drained] }* ─ flush ─ unblock

Offsets and lengths are bytes, in whatever `units.index` takes: numpy's integers, too, and no floats or bools. Every
failure of the disk is a :class:`~blkmig.errors.DeviceError` that names the disk and the offset, raised from the
:class:`OSError`; after it the disk can still be flushed and closed.
"""

from __future__ import annotations

import abc
import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .. import _core, errors, units
from . import extents as disk_extents
from . import identity, storage, verbs

if TYPE_CHECKING:
    from .dirty import DirtyBitmap


ZEROS = memoryview(bytes(_core.BLOCK_SIZE))
"""A block of zeros, for disks that have no better way to write them."""

class BlockBackend(abc.ABC):
    """A disk of `size` bytes, called `name` on the wire (at most 255 bytes of UTF-8)."""

    name: str
    size: int
    is_read_only: bool = False
    reads_in_parallel: bool = False
    """Whether reads have latency worth hiding: then up to 16 threads call `read_block` at once."""

    is_written: bool = True
    """Whether anybody may write the disk while it is open here."""

    mapping: _core.Mapping | None = None
    """The whole disk as a mapping of the one file that `read_block` reads; None where there is no such thing."""

    takes_pages: bool = False
    """Whether `write_block` stores pages without looking at them; see the kind "piped" of ``BlockBuffer``."""

    awaits_switchover: bool = False
    """Whether `hold_writers` waits for somebody else to stop the writers, so that this wait is no pause of theirs."""

    min_granularity: int = 4096
    """How fine the marks are that its tracker gets, in bytes: a bitmap that is finer tells no more."""

    size_unit: int = 1
    """Sizes are multiples of so many bytes: a disk of another size has the next one, as an image has whole sectors."""

    is_growable: bool = False
    """Whether `resize` works: a new regular file whose final size is not yet known."""

    flushes_beside: bool = False
    """Whether `flush_drained` works: what has been drained is flushed by another thread while this one writes on."""

    files: Sequence[identity.KnownFile] = ()
    """The file that holds the disk, then those that it is only read from, as they were when it was opened."""

    def __init_subclass__(cls, **options: object) -> None:
        """See to it that the verbs of a subclass keep the contract about errors."""
        super().__init_subclass__(**options)
        verbs.guard(cls, BlockBackend)

    # -- contents ----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read [offset, offset + nbytes) into `blk`, zeros behind it, and return whether all of it is zero.

        Blocks. What lies at or past the end of the disk reads as zeros. `nbytes` is at most 1 MiB. Several threads
        call it at once where `reads_in_parallel`, each with a `blk` of its own, and never for one block.
        """

    @abc.abstractmethod
    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Write the first `nbytes` of `blk` at `offset`. Zero clusters may stay holes.

        A range that is not wholly inside the exact size is refused: see ``BlockGeometry.clip``. It is a target's verb:
        it marks nothing dirty. A `blk` that `is_movable` may lose its payload to the disk, which then stores it soon,
        before anything else that is done to the disk. If that fails, a later verb raises the error.
        """

    def read_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Read `extents`, each (offset, nbytes), into `blk` one behind the other; nobody looks for zeros.

        1 to 256 of them, 1 MiB together. What lies past the end reads as zeros; threads, too, are as with `read_block`.
        """
        disk_extents.read_each(self, blk, extents)

    def write_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Write `extents`, each (offset, nbytes) inside the exact size; their bytes are in `blk`, back to back.

        As `write_block`, but they are written when it returns, and after all that was written before.
        """
        disk_extents.write_each(self, blk, extents)

    @abc.abstractmethod
    def write_zeroes(self, offset: int, nbytes: int) -> None:
        """Make [offset, offset + nbytes) read as zeros, as holes where the disk can.

        Any length inside the disk. It is a target's verb: it marks nothing dirty.
        """

    def rest(self) -> None:  # noqa: B027 - most disks hold nothing
        """Finish the writes that `write_block` has put off, and free the memory for them until the next `write_block`.

        A target's verb, for streams of very many disks. Blocks.
        """

    @abc.abstractmethod
    def flush(self) -> None:
        """Return when everything written before is on stable storage."""

    def drain(self) -> None:
        """Finish the writes that `write_block` has put off: all of them have been handed to the system. Blocks."""
        self.rest()

    def flush_drained(self) -> None:
        """Return when everything written before the last `drain` is on stable storage. Only where `flushes_beside`.

        Any thread may call it, also while another one writes, drains or resizes, but not once the disk is closed.
        """
        raise errors.DeviceError("cannot be flushed", device=self.name, cause="not while it is written")

    def resize(self, size: int) -> None:
        """Make the disk `size` bytes long; new bytes are zeros. Only where `is_growable`."""
        raise errors.DeviceError("cannot be resized", device=self.name, cause="its size is fixed")

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Return the first extent (start, end) at or after `offset` that may hold data; what lies before it is zeros.

        None: nothing but zeros from `offset` to the end. A disk that cannot tell says that all of it is data.
        """
        offset = units.index(offset)
        return (offset, self.size) if offset < self.size else None

    def zeroes_end(self, offset: int) -> int:
        """Return where the zeros that begin at `offset` end; `offset` itself where that takes more than a moment.

        A target's verb: a receiver asks it, so that zeros which come for a hole cost nothing.
        """
        return offset

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Return the first extent (start, end) in [offset, offset + nbytes) that the top layer holds, None if none.

        A disk without a base, and one that cannot tell, says that its top layer holds all of it.
        """
        offset, nbytes = units.index(offset), units.index(nbytes)
        end = min(offset + nbytes, self.size)
        return (offset, end) if offset < end else None

    def forget_extents(self) -> None:  # noqa: B027 - most disks look each time
        """Have the next answers of `next_data` and `next_allocated` be no older than this call."""

    def open_reader(self, *, is_target: bool) -> storage.StorageReader | None:
        """Return a second reader of the disk, for a thread of its own; None if only one thread may read it."""
        return storage.BackendReader(self) if self.reads_in_parallel else None

    # -- dirty tracking ----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def create_dirty_bitmap(self, granularity: int) -> DirtyBitmap:
        """Start tracking writes in a new bitmap, all clean, that no other tracker of this disk shares."""

    @abc.abstractmethod
    def release_dirty_bitmap(self, bitmap: DirtyBitmap) -> None:
        """Stop tracking in `bitmap`. Releasing it twice does no harm."""

    def sync_dirty(self) -> None:  # noqa: B027 - a local tracker has nothing to fetch
        """Bring the dirty bitmaps up to date: on return they hold every write that finished before the call."""

    @classmethod
    def sync_together(cls, disks: Sequence[Self]) -> None:
        """Do `sync_dirty` for several disks of this kind; disks that share a server ask it once for all of them.

        Callers use `sync_disks`, which takes disks of any kind.
        """
        for each in disks:
            each.sync_dirty()

    # -- writers -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def hold_writers(self) -> None:
        """Keep new writes out and wait for those in flight; on return every finished write is marked dirty."""

    @abc.abstractmethod
    def release_writers(self, *, refuse: bool = False) -> None:
        """Let held writers go on, or with `refuse` turn them and all later ones away: the disk has moved.

        Without writers held it only takes `about_to_move` back. From any thread: it may end a `hold_writers` that waits
        in another thread, with Cancelled.
        """

    def throttle_writers(self, fraction: float) -> bool:
        """Slow the writers down to `fraction` (above 0) of their speed, 1 lifts it; False if this disk cannot.

        Raises :class:`~blkmig.errors.ParameterError` for a fraction that is no such share.
        """
        return False

    def written_bytes(self) -> int | None:
        """Return how many bytes the writers have written since some moment; None if this disk does not count them."""
        return None

    def about_to_move(self) -> bool:
        """Take note that the next `hold_writers` is that of a move: at its end the target may own the disk.

        Called while the writers run. If they are not held, or go on, with the next `release_writers`, it is taken back.
        A disk of another program leaves the note there, for whoever cleans up after a run that is killed; it may take
        until the second `sync_dirty` behind the hold returns, which comes before the end of the move.
        False: the target cannot use the disk before `release_writers` with `refuse`, because only that gives it the
        rest of the VM. Then a word that does not come leaves no doubt, and the writers go on here.
        """
        return True

    def leave_in_doubt(self) -> None:
        """Leave held writers where they are, for good: the target may own the disk, and nobody knows."""
        self.release_writers(refuse=True)

    # -- a migration that is under way -------------------------------------------------------------------------------

    def check_source(self) -> None:  # noqa: B027 - most disks have nothing to tell
        """Raise what is known to have happened that makes the copy worthless, or the migration pointless.

        It waits for nobody and asks nobody: a migration calls it in each section, about ten times a second.
        """

    def cancel(self) -> None:  # noqa: B027 - most disks do not wait for anybody
        """Make every call that waits in this disk, and every later one that would, raise Cancelled.

        From any thread and any signal handler, so it takes no lock that a call which waits may hold. What is for
        cleaning up still works: releasing and closing. A use of the disk that begins afterwards is not affected.
        """

    # -- use ---------------------------------------------------------------------------------------------------------

    _used_for: str | None = None
    _use_lock = threading.Lock()  # guards `_used_for` of all disks, for a moment

    @contextlib.contextmanager
    def block_use(self, reason: str) -> Iterator[None]:
        """Keep other migrations off this disk for the length of a ``with``; `reason` is what they are told.

        Raises :class:`~blkmig.errors.DeviceBusy` if it is kept already.
        """
        with self._use_lock:
            if self._used_for is not None:
                cause = f"it is already used for {self._used_for}"
                raise errors.DeviceBusy("cannot be used", device=self.name, cause=cause)
            self._used_for = reason
        try:
            yield
        finally:
            self._used_for = None

    @abc.abstractmethod
    def close(self) -> None:
        """Release the disk. Closing twice does no harm; any other call afterwards raises DeviceError.

        Whatever was written is the system's by then, but only :meth:`flush` makes it durable. Raises DeviceError if a
        block could not be written and no call before has told so; the disk is closed all the same.
        """

    def __enter__(self) -> Self:
        """Return the disk itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the disk; what fails then is a note to the error that the body ended with, if there was one."""
        with errors.keeping(exc):
            self.close()


def sync_disks(disks: Iterable[BlockBackend]) -> None:
    """Bring the dirty bitmaps of `disks` up to date, a kind at a time: a pause must not grow with their number."""
    kinds: dict[type[BlockBackend], list[BlockBackend]] = {}
    for each in disks:
        kinds.setdefault(type(each), []).append(each)
    for kind, members in kinds.items():
        kind.sync_together(members)
