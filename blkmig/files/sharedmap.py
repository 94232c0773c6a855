# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that another program writes: it tells which parts through a dirty map, a small file in shared memory.

The map, all numbers little-endian::

    offset   bytes
    0        8      magic "BLKDIRTY"
    8        4      version, 1
    12       4      granularity: bytes of disk that one byte of the map stands for, a power of two; 65536 as a rule
    16       8      size of the disk in bytes
    24       ...    zeros
    4096     n      one byte for each chunk of the disk, n = size / granularity rounded up: 1 written, 0 not

The rule is the same as everywhere: **write, then mark; clear, then read**. ::

    writer    write ──────────► store 1
    blkmig          store 0 ► read          the read may have missed the write: its 1 stays

A byte is stored, never changed bit by bit, so there is no lock and no atomic operation in the writer: a C program maps
the file and assigns, a Python one uses mmap. (On a machine that reorders stores the writer's assignment must be a
release store, ``__atomic_store_n(&map[i], 1, __ATOMIC_RELEASE)``; after a write(2) that has returned it is one anyway.)
A write that failed may have written a part and is marked, too. The file must not become shorter while it is in use.

One migration at a time takes the marks: it holds a lock (flock) on the map.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import mmap
import os
import struct
import subprocess
from collections.abc import Callable, Iterator

from .. import _core, children, errors, units
from ..disk import backend, dirty, identity, local

SCHEME = "dirtymap:"
MAGIC = b"BLKDIRTY"
VERSION = 1
HEADER = struct.Struct("<8sIIQ")
MAP_OFFSET = 4096
GRANULARITY = 65536
MIN_GRANULARITY, MAX_GRANULARITY = 4096, 1 << 20
WINDOW = 1 << 18
"""Bytes of the map that are looked at together: 16 GiB of disk."""

COMMAND_SECONDS = 60.0

Action = Callable[[], object]


class SharedMapBackend(backend.BlockBackend):
    """The disk `source`, written by another program that marks its writes in the dirty map at `path`.

    `hold` must return when the writer has paused, nothing of it is in flight, and all of it is marked; `release` lets
    it go on; `refuse`, if there is one, turns it away for good after the disk has moved, else it stays held. Each is a
    function, or a command for the shell, which fails by its exit status. Closing closes `source`, too.

    Raises :class:`~blkmig.errors.FormatError` for a map that is not one of this disk.
    """

    def __init__(
        self,
        source: local.LocalBackend,
        path: str | os.PathLike[str],
        *,
        hold: Action | str,
        release: Action | str,
        refuse: Action | str | None = None,
        name: str | None = None,
    ) -> None:
        self._source = source
        self.name = source.name = source.name if name is None else name
        backend.check_name(self.name)
        self.size = source.size
        self.is_read_only = source.is_read_only
        self.reads_in_parallel = source.reads_in_parallel
        self._hold, self._release, self._refuse = hold, release, refuse
        self._is_held = self._stays_held = False
        self._trackers: list[dirty.DirtyBitmap] = []
        self._map = DirtyMap(path, size=self.size, device=self.name)
        # Written by another program, on purpose, and marked.
        self.files = tuple(dataclasses.replace(file, is_tracked=True) for file in (*source.files, self._map.known))

    # -- contents: the source's --------------------------------------------------------------------------------------

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block of the source."""
        return self._source.read_block(blk, offset, nbytes)

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Return the next extent that may hold data."""
        return self._source.next_data(offset)

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Return the next extent that the top layer holds."""
        return self._source.next_allocated(offset, nbytes)

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Write a block of the source; it is not marked in the map."""
        self._source.write_block(blk, offset, nbytes)

    def write_zeroes(self, offset: int, nbytes: int) -> None:
        """Write zeros to the source; they are not marked in the map."""
        self._source.write_zeroes(offset, nbytes)

    def flush(self) -> None:
        """Flush the source."""
        self._source.flush()

    # -- dirty tracking ----------------------------------------------------------------------------------------------

    def create_dirty_bitmap(self, granularity: int) -> dirty.DirtyBitmap:
        """Start to take marks from the map. Raises :class:`~blkmig.errors.DeviceBusy` if another migration does."""
        self._source.check_home("cannot be migrated")
        if not self._trackers:
            self._map.lock()
        self.sync_dirty()  # what was marked before is for the trackers that were there before
        bitmap = self._source.create_dirty_bitmap(granularity)
        self._trackers.append(bitmap)
        return bitmap

    def release_dirty_bitmap(self, bitmap: dirty.DirtyBitmap) -> None:
        """Stop tracking in `bitmap`; the last one leaves the map to others."""
        self._source.release_dirty_bitmap(bitmap)
        self._trackers = [tracker for tracker in self._trackers if tracker is not bitmap]
        if not self._trackers:
            self._map.unlock()

    def sync_dirty(self) -> None:
        """Take the marks: store 0, then mark here, so that the reads come after."""
        self._source.check_home("cannot be migrated")
        for offset, nbytes in self._map.take():
            self._source.mark_dirty(offset, min(nbytes, self.size - offset))
        self._source.sync_dirty()

    # -- writers -----------------------------------------------------------------------------------------------------

    def hold_writers(self) -> None:
        """Have the writer pause, by the function or the command."""
        self._source.check_home("cannot be held")
        if not self._is_held:
            self._run(self._hold, "hold its writer")
            self._is_held = True

    def release_writers(self, *, refuse: bool = False) -> None:
        """Have the writer go on, or with `refuse` turn it away, or leave it held where there is no way to."""
        units.check_flags(refuse=refuse)
        if self._source.is_foreign:
            return
        self._stays_held = False
        if self._is_held:
            self._is_held = False
            action = self._refuse if refuse else self._release
            if action is not None:
                self._run(action, "refuse its writer" if refuse else "release its writer")

    def about_to_move(self) -> bool:
        """Leave the writer held, also when this disk is closed."""
        self._stays_held = True
        return True

    def leave_in_doubt(self) -> None:
        """Leave the writer held: to turn it away for good, somebody would have to know."""

    def _run(self, action: Action | str, doing: str) -> None:
        try:
            if not isinstance(action, str):
                action()
                return
            children.require_statuses()  # an unknown status would be a 0
            subprocess.run(action, shell=True, check=True, stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS)
        except OSError as error:
            raise errors.DeviceError(f"cannot {doing}", device=self.name, cause=error) from error
        except subprocess.SubprocessError as error:
            raise errors.DeviceError(f"cannot {doing}", device=self.name, cause=str(error)) from error

    def close(self) -> None:
        """Release the writer, unless it is to stay held, the map, and the source. Twice does no harm."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._source.close)
            stack.callback(self._map.close)
            if not self._stays_held:
                self.release_writers()


class DirtyMap:
    """The dirty map at `path`, of a disk of `size` bytes."""

    def __init__(self, path: str | os.PathLike[str], *, size: int, device: str) -> None:
        self._device = device
        self._pid = os.getpid()
        try:
            self._file = open(path, "r+b", buffering=0)  # noqa: PTH123, SIM115 - it stays open
        except OSError as error:
            raise errors.DeviceError("cannot open its dirty map", device=device, cause=error) from error
        try:
            self.known = identity.KnownFile.of(path, fd=self._file.fileno())
            self.granularity, self._count = self._read_header(size)
            self._map = mmap.mmap(self._file.fileno(), MAP_OFFSET + self._count)
        except BaseException:
            self._file.close()
            raise

    def _read_header(self, size: int) -> tuple[int, int]:
        header = self._file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise self._wrong("that file is not a dirty map")
        _, version, granularity, mapped_size = HEADER.unpack(header)
        if version != VERSION:
            raise self._wrong(f"it has version {version}, and only {VERSION} is known")
        if not MIN_GRANULARITY <= granularity <= MAX_GRANULARITY or granularity & (granularity - 1):
            raise self._wrong(f"its granularity is {granularity}, and must be a power of two from 4 KiB to 1 MiB")
        if mapped_size != size:
            raise self._wrong(f"it is the map of a disk of {mapped_size} bytes, and this one has {size}")
        count = -(-size // granularity)
        if os.fstat(self._file.fileno()).st_size < MAP_OFFSET + count:
            raise self._wrong(f"it is too short for {count} chunks")
        return granularity, count

    def _wrong(self, cause: str) -> errors.FormatError:
        return errors.FormatError("cannot use its dirty map", device=self._device, cause=cause)

    def lock(self) -> None:
        """Keep other migrations from taking the marks. Raises :class:`~blkmig.errors.DeviceBusy`."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            cause = "another migration takes the marks"
            raise errors.DeviceBusy("cannot use its dirty map", device=self._device, cause=cause) from error

    def unlock(self) -> None:
        """Leave the marks to others."""
        if not self._file.closed and self._pid == os.getpid():  # not a fork's child, whose lock is the parent's
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def take(self) -> Iterator[tuple[int, int]]:
        """Clear the marks and yield the (offset, nbytes) that they stood for; about 10 ms for a TiB of disk.

        A window at a time, so that memory is bounded; whoever stops half-way leaves the marks of his window there.
        """
        import numpy as np

        if self._file.closed:
            raise errors.DeviceError("cannot use its dirty map", device=self._device, cause="it is closed")
        for start in range(0, self._count, WINDOW):
            chunks = np.frombuffer(self._map, np.uint8, min(WINDOW, self._count - start), MAP_OFFSET + start)
            marked = np.flatnonzero(chunks)
            chunks[marked] = 0  # what is marked again from here on is read after this, or stays marked
            ends = np.flatnonzero(np.diff(marked, append=-1) != 1)
            starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
            try:
                for first, last in zip(marked[starts].tolist(), marked[ends].tolist(), strict=True):
                    yield (start + first) * self.granularity, (last + 1 - first) * self.granularity
            except BaseException:
                chunks[marked] = 1  # whoever was to have them has stopped: the next one takes them
                raise

    def close(self) -> None:
        """Unmap it. Twice does no harm."""
        self._file.close()
        with contextlib.suppress(BufferError):  # an array of an interrupted `take` may still look at it
            self._map.close()


def create_map(path: str | os.PathLike[str], size: int, *, granularity: int = GRANULARITY) -> None:
    """Write a dirty map, all clean, for a disk of `size` bytes; an existing file is replaced.

    `granularity` is a power of two from 4 KiB to 1 MiB. Raises :class:`~blkmig.errors.ParameterError`.
    """
    size, granularity = units.parse_size(size), units.index(granularity)
    if not MIN_GRANULARITY <= granularity <= MAX_GRANULARITY or granularity & (granularity - 1):
        raise errors.ParameterError(f"granularity must be a power of two from 4K to 1M, not {granularity}")
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(HEADER.pack(MAGIC, VERSION, granularity, size))
        file.truncate(MAP_OFFSET + -(-size // granularity))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MapAddress:
    """What ``dirtymap:MAP,disk=DISK,hold=COMMAND,release=COMMAND[,refuse=COMMAND]`` says."""

    path: str
    disk: str
    hold: str
    release: str
    refuse: str | None = None


def parse(text: str) -> MapAddress:
    """Parse ``dirtymap:...``; a comma in a value is written twice. Raises :class:`~blkmig.errors.ParameterError`."""
    path, *options = (part.replace("\0", ",") for part in text.removeprefix(SCHEME).replace(",,", "\0").split(","))
    pairs = [option.partition("=") for option in options]
    values = {key: value for key, equals, value in pairs if equals and value}
    if not path or len(values) != len(options) or not {"disk", "hold", "release"} <= values.keys():
        raise errors.ParameterError(f"{text!r} must be dirtymap:MAP,disk=DISK,hold=COMMAND,release=COMMAND")
    if unknown := values.keys() - {"disk", "hold", "release", "refuse"}:
        raise errors.ParameterError(f"{', '.join(unknown)} in {text!r} is not known; it may also have refuse=COMMAND")
    return MapAddress(path=path, **values)
