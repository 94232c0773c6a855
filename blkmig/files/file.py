# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw files and block devices, alone or as an overlay.

An overlay is a raw file whose holes show another one, its base::

    top     │ data │      hole      │ data │ hole │        what the disk shows:   top, base, top, zeros
    base    │          data         │                      (a base may be shorter: zeros behind it)

The kernel's SEEK_DATA says where the top's holes are. So zeros are written to an overlay as data, for a hole would show
the base again, and a write to a hole fills its whole cluster, the rest of it from the base: file systems
allocate in units of their own, which are never larger than a cluster.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Literal, Self

from .. import _core, _storing, errors, paths, units
from ..disk import extents as disk_extents
from ..disk import local
from . import locks, rawfile, storage


class FileBackend(local.LocalBackend):
    """A disk in the raw file or block device at `path`.

    `name` is what the wire calls it, by default the file's name without suffix. `base` makes it an overlay of that raw
    file, which is only read. `read_only` is a disk whose guest cannot write it; a migration skips it. With
    ``writable=False`` nobody writes it here, and no QEMU may: it is opened for reading, and migrated. `direct`
    goes past the page cache. ``format="raw"`` opens a file that looks like another format. ``locking=False`` takes no
    image locks and ignores those of others.

    `create_size` makes a new sparse file of so many bytes, for this user only; an existing one is never touched by
    that. A new file, or an empty one, can be resized, no other one. `opened`, a descriptor of it, becomes the disk's.

    Opening raises :class:`~blkmig.errors.DeviceError`, :class:`~blkmig.errors.DeviceBusy` if a QEMU or a mount
    is in the way, :class:`~blkmig.errors.FormatError` if the file does not look raw.
    """

    flushes_beside = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        base: str | os.PathLike[str] | None = None,
        read_only: bool = False,
        writable: bool = True,
        create_size: int | None = None,
        direct: bool = False,
        format: Literal["raw"] | None = None,
        locking: bool = True,
        opened: int | None = None,
    ) -> None:
        path = paths.check("the path of a disk", path)
        below = None if base is None else paths.check("the path of a base", base)
        units.check_flags(writable=writable, direct=direct, locking=locking)
        create_size = None if create_size is None else units.place("create_size", create_size)
        super().__init__(Path(path).stem if name is None else name, 0, read_only=read_only)
        writable = writable and not read_only
        self._base: rawfile.RawFile | None = None
        try:
            if below is not None:
                reader = locks.READER if locking else None
                self._base = rawfile.RawFile(below, device=self.name, writable=False, direct=direct, permissions=reader)
        except BaseException:
            if opened is not None:
                os.close(opened)
            raise
        try:
            self._top = rawfile.RawFile(
                path,
                device=self.name,
                writable=writable,
                create_size=create_size,
                direct=direct,
                format=format,
                permissions=(locks.WRITER if writable else locks.READER) if locking else None,
                opened=opened,
            )
        except BaseException:
            if self._base is not None:
                self._base.close()
            raise
        self.size = self._top.size
        self.files = tuple(layer.known for layer in (self._top, self._base) if layer is not None)
        self.reads_in_parallel = self._top.reads_in_parallel
        self.takes_pages = base is None and self._top.takes_pages
        self.is_written = writable
        is_new = create_size is not None or not (self.size or self._top.is_device)
        self.is_growable = writable and base is None and is_new
        self._cluster_lock = threading.Lock()  # held while a cluster of an overlay is written whole
        self._known_data = (0, 0)  # an extent of the top's data; it stays data, for nothing punches holes there

    @classmethod
    def create(cls, path: str | os.PathLike[str], size: int = 0, *, name: str | None = None) -> Self:
        """Make a new, sparse, growable file of `size` bytes; refuses a `path` that exists."""
        return cls(path, name=name, create_size=size)

    @property
    def mapping(self) -> _core.Mapping | None:  # type: ignore[override]
        """The file's mapping; an overlay, a device, and what goes past the page cache have none."""
        return self._top.mapping if self._base is None else None

    def plain_fd(self) -> int | None:
        """Return the descriptor of the one file that holds the disk; None for an overlay."""
        return self._top.fd if self._base is None else None

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block; drops the GIL."""
        try:
            if self._base is None:
                return self._top.fill(blk, offset, nbytes)
            offset, nbytes = units.index(offset), units.index(nbytes)
            return self._fill_from_layers(self._base, blk, offset, max(0, min(nbytes, self.size - offset)))
        except OSError as error:
            raise self.failed("cannot read", error, offset, nbytes) from error

    def read_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Read extents, where the disk is one file in one call; drops the GIL."""
        if self._base is not None:
            super().read_extents(blk, extents)
            return
        with self.failing("cannot read"):
            self._top.fill_extents(blk, extents)

    def _fill_from_layers(self, base: rawfile.RawFile, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        start, stop = self._known_data
        if not (start <= offset and offset + nbytes <= stop):
            start, stop = self._top.next_data(offset, self.size) or (self.size, self.size)
            self._known_data = (start, stop)
        if start <= offset and offset + nbytes <= stop:
            return self._top.fill(blk, offset, nbytes)
        if start >= offset + nbytes:
            return base.fill(blk, offset, nbytes)
        self._pread_into(blk.data[:nbytes], offset)
        return blk.filled(nbytes)

    def _pread_into(self, view: memoryview, offset: int) -> None:
        if self._base is None:
            self._top.pread_into(view, offset)
            return
        position, end = offset, offset + view.nbytes
        while position < end:
            start, stop = self._top.next_data(position, end) or (end, end)
            self._base.pread_into(view[position - offset : start - offset], position)
            self._top.pread_into(view[start - offset : stop - offset], start)
            position = stop

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Ask the file system, which takes the same time for a hole of any size."""
        offset = units.place("offset", offset)
        try:
            extent = self._top.next_data(offset, self.size)
            if self._base is None or (below := self._base.next_data(offset, self.size)) is None:
                return extent
            return below if extent is None else min(extent, below)
        except OSError as error:
            raise self.failed("cannot look for data", error, offset) from error

    def zeroes_end(self, offset: int) -> int:
        """Ask the file system where the next data is; an overlay cannot tell."""
        offset = units.place("offset", offset)
        with self.failing("cannot look for data", offset):  # what is stored before it is looked may fail
            return offset if self._base is not None else self._top.zeroes_end(offset)

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Ask the file system what the top of an overlay holds."""
        if self._base is None:
            return super().next_allocated(offset, nbytes)
        offset, nbytes = units.index(offset), units.index(nbytes)
        with self.failing("cannot look for data", offset, nbytes):
            return self._top.next_data(offset, offset + nbytes)

    def sync_dirty(self) -> None:
        """Raise if the file was cut while it was read: what was read past its new end was no data."""
        self.check_open()
        with self.failing("cannot be read to its end"):
            self._top.check_size()
            if self._base is not None:
                self._base.check_size()

    def open_reader(self, *, is_target: bool) -> storage.FileReader | None:
        """Return a reader past the page cache; of an overlay there is none."""
        if self._base is not None:
            return None
        return storage.FileReader(self._top, device=self.name, drops_cache=is_target)

    # -- writing -----------------------------------------------------------------------------------------------------

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Write a block; its zero clusters of 64 KiB become holes in a file. Drops the GIL."""
        offset, nbytes = self.check_range("cannot write", offset, nbytes)
        try:
            self._check_before_write()
            if self._base is None:
                self._top.store(blk, offset, nbytes)
            else:
                self._pwrite(blk.payload[:nbytes], offset)
        except OSError as error:
            raise self.failed("cannot write", error, offset, nbytes) from error

    def write_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Write extents, where the disk is one file in one call, after what waits to be stored. Drops the GIL."""
        if self._base is not None:
            super().write_extents(blk, extents)
            return
        extents = [self.check_range("cannot write", offset, nbytes) for offset, nbytes in extents]
        with self.failing("cannot write"):
            self._check_before_write()
            self._top.store_extents(blk, extents)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self._check_before_write()
        if self._base is None:
            self._top.pwrite(view, offset)
        elif view.nbytes:
            self._pwrite_clusters(view, offset)

    def _pwrite_clusters(self, view: memoryview, offset: int) -> None:
        """Write whole clusters to an overlay, what is missing of them from what it shows now.

        Writers of one cluster come one after the other: each would bring back what the other overwrote. A reader that
        comes in between sees the old bytes or the new ones.
        """
        start = offset // (cluster := self._top.cluster_size) * cluster
        end = min(-(-(offset + view.nbytes) // cluster) * cluster, self.size)
        with self._cluster_lock:
            if (start, end) != (offset, offset + view.nbytes):
                whole = bytearray(end - start)
                self._pread_into(memoryview(whole)[: offset - start], start)
                self._pread_into(memoryview(whole)[offset + view.nbytes - start :], offset + view.nbytes)
                whole[offset - start : offset - start + view.nbytes] = view
                view = memoryview(whole)
            self._top.pwrite(view, start)

    def _pwrite_zeroes(self, offset: int, nbytes: int) -> None:
        self._check_before_write()
        if self._base is None:
            self._top.write_zeroes(offset, nbytes)
            return
        end = offset + nbytes
        while (extent := self.next_data(offset)) is not None and extent[0] < end:
            offset = max(offset, extent[0])
            count = min(extent[1], end, offset + _core.BLOCK_SIZE) - offset
            self._pwrite(memoryview(bytes(count)), offset)
            offset += count

    def _check_before_write(self) -> None:
        if not self._top.writable:
            raise errors.DeviceError("cannot be written", device=self.name, cause="it was opened for reading only")
        if not self._top.is_device and os.lseek(self._top.fd, 0, os.SEEK_END) < self._top.size:
            self._top.check_size()  # else the write would give a file that was cut its size back, with holes

    def resize(self, size: int) -> None:
        """Grow a new file by a hole, or cut it. No migration may be reading it, and nothing may track it."""
        self.check_open()
        size = units.place("size", size)
        if not self.is_growable or self.trackers:
            super().resize(size)
        with self.failing("cannot be resized", 0, size):
            self._top.resize(size)
        self.size = size

    def rest(self) -> None:
        """Store what waits to be stored."""
        self.check_open()
        self._top.rest()

    def flush(self) -> None:
        """Wait for the disk (fdatasync), and for the directory entry of a new file."""
        self.check_open()
        self._top.flush()

    def drain(self) -> None:
        """Store what waits."""
        self._top.drain()

    def flush_drained(self) -> None:
        """Wait for the disk, as `flush` does."""
        self._top.sync()

    def _close(self) -> None:
        try:
            self._top.close()
        except _storing.LateError as error:
            raise self.failed("cannot write", error) from error
        except OSError as error:
            raise errors.DeviceError("cannot be closed", device=self.name, cause=error) from error
        finally:
            if self._base is not None:
                with self.failing("cannot be closed"):
                    self._base.close()
