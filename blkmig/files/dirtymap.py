# SPDX-License-Identifier: GPL-2.0-or-later
"""A dirty map: a small file in shared memory, in which a program tells which parts of a disk it has written.

All numbers little-endian::

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
A write that failed may have written a part and is marked, too. The file must not become shorter while it is in use. A
program that is started anew makes a new file and gives it the old one's name: a migration that reads the old one ends.

One migration at a time takes the marks: it holds a lock (flock) on the map.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import pathlib
import stat
import struct
from collections.abc import Iterator

from .. import errors, paths, units
from ..disk import identity

MAGIC = b"BLKDIRTY"
VERSION = 1
HEADER = struct.Struct("<8sIIQ")
MAP_OFFSET = 4096
GRANULARITY = 65536
MIN_GRANULARITY, MAX_GRANULARITY = 4096, 1 << 20
WINDOW = 1 << 18
"""Bytes of the map that are looked at together: 16 GiB of disk."""


class DirtyMap:
    """The dirty map at `path`, of a disk of `size` bytes."""

    def __init__(self, path: str | os.PathLike[str], *, size: int, device: str) -> None:
        paths.check("the path of a dirty map", path)
        self._device = device
        self._pid = os.getpid()
        with errors.failing("cannot open its dirty map", device=device):
            self._file = open(path, "r+b", buffering=0)  # noqa: PTH123, SIM115 - it stays open
        try:
            self.known = identity.KnownFile.of(path, fd=self._file.fileno())
            self.granularity, self._count = self._read_header(size)
            try:
                with errors.failing("cannot map its dirty map", device=device):
                    self._map = mmap.mmap(self._file.fileno(), MAP_OFFSET + self._count)
            except ValueError as error:  # it was cut just now
                raise self._wrong(f"it is too short for {self._count} chunks") from error
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

        self._check_is_marked()
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

    def _check_is_marked(self) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if the writer marks elsewhere, or the file is too short to be read.

        That its name is gone says neither: the writer may have it mapped, as we have.
        """
        if self._file.closed:
            raise self._gone("it is closed")
        about = os.fstat(self._file.fileno())
        if about.st_size < (size := MAP_OFFSET + self._count):
            raise self._gone(f"it was cut from {size} to {about.st_size} bytes while it was in use")
        try:
            named = pathlib.Path(self.known.path).stat()
        except OSError:
            return
        if not os.path.samestat(about, named):
            raise self._gone(
                f"{self.known.path!r} is another file by now, as when its program was started anew, and what it writes "
                "may be marked there: send the disk again"
            )

    def _gone(self, cause: str) -> errors.DeviceError:
        return errors.DeviceError("cannot use its dirty map", device=self._device, cause=cause)

    def close(self) -> None:
        """Unmap it. Twice does no harm."""
        self._file.close()
        with contextlib.suppress(BufferError):  # an array of an interrupted `take` may still look at it
            self._map.close()


def create_map(path: str | os.PathLike[str], size: int, *, granularity: int = GRANULARITY) -> None:
    """Make a dirty map, all clean, for a disk of `size` bytes.

    An existing file is replaced by a new one of its mode: whoever has the old one mapped keeps that. `granularity` is
    a power of two from 4 KiB to 1 MiB. Raises :class:`~blkmig.errors.ParameterError`, and
    :class:`~blkmig.errors.DeviceError` if the file cannot be written.
    """
    paths.check("the path of a dirty map", path)
    size, granularity = units.parse_size(size), units.index(granularity)
    if not MIN_GRANULARITY <= granularity <= MAX_GRANULARITY or granularity & (granularity - 1):
        raise errors.ParameterError(f"granularity must be a power of two from 4K to 1M, not {granularity}")
    target = pathlib.Path(os.path.realpath(path))
    made = target.with_name(f".{target.name}.{os.getpid()}.new")
    with errors.failing("cannot write the dirty map", device=os.fspath(path)), made.open("xb") as file:
        try:
            file.write(HEADER.pack(MAGIC, VERSION, granularity, size))
            file.truncate(MAP_OFFSET + -(-size // granularity))
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            made.replace(target)
        except BaseException:
            made.unlink(missing_ok=True)
            raise
