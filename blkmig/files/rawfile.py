# SPDX-License-Identifier: GPL-2.0-or-later
"""One open raw file or block device: how it is opened, read, written and zeroed. No policy, no dirty tracking.

Opening raises :class:`~blkmig.errors.DeviceError`; the verbs raise :class:`OSError`, and their caller says where.
Opening costs the same for a disk of any size.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from .. import _core, aside, errors, logs
from ..disk import backend, identity
from ..disk import extents as disk_extents
from . import blockdevice, folder, locks, probe, storing, writeback
from . import direct as direct_io

CLUSTER = 1 << 16
"""Zeros inside a block of data become holes in steps of this size: smaller ones only fragment the file."""

_STAT_BLOCK = 512  # bytes that st_blocks counts, whatever the file system's blocks are
_logger = logs.Logger(__name__)


class RawFile:
    """An open raw image. `size` is exact, in bytes; `fd` is -1 once it is closed; `known` is what was opened.

    With `opened`, a descriptor that becomes this object's own, nothing is looked up by `path` any more, and
    `create_size` gives the file its size.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str,
        writable: bool,
        create_size: int | None = None,
        direct: bool = False,
        format: str | None = None,
        permissions: locks.Permissions | None,
        opened: int | None = None,
    ) -> None:
        self.fd = self._direct_fd = -1
        self._mapping: _core.Mapping | None = None
        self._storing: storing.StoringThread | None = None
        self._is_locked = False
        self._pid = os.getpid()
        self.path = path
        self.writable = writable
        self._new_name = create_size is not None and opened is None
        try:
            if opened is None:
                self.is_device = self._open(permissions, create_size)
            else:
                self.fd, self.is_device = opened, False
            self.known = identity.KnownFile.of(path, fd=self.fd, is_tracked=writable)
            self._writeback = writeback.EarlyWriteback(self.fd)
            self.cluster_size = max(os.fstat(self.fd).st_blksize, CLUSTER)
            if permissions is not None:
                self._is_locked = True
                locks.acquire(self.fd, permissions, device=device)
            if create_size is not None:
                os.ftruncate(self.fd, create_size)
            self._set_size()
            if format is None:
                probe.require_raw(self.fd, self.size, device=device)
            if direct:
                self._direct_fd = direct_io.open_again(self.fd, writable=self.writable)
        except OSError as error:
            self._undo()
            kind = errors.DeviceBusy if error.errno == errno.EBUSY else errors.DeviceError
            doing = f"cannot {'create' if create_size is not None else 'open'} {path!r}"
            raise kind(doing, device=device, cause=error) from error
        except BaseException:
            self._undo()
            raise

    def _open(self, permissions: locks.Permissions | None, create_size: int | None) -> bool:
        """Open the file and return whether it is a block device; anything but files and devices is refused."""
        flags = os.O_CLOEXEC | (os.O_RDWR if self.writable else os.O_RDONLY)
        if create_size is not None:
            self.fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o600)  # the umask may take more away
            return False
        mode = Path(self.path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, "it is a folder, not a file or a block device")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise OSError(errno.EINVAL, "neither a regular file nor a block device")
        if stat.S_ISBLK(mode) and self.writable and permissions is not None:
            flags |= os.O_EXCL  # EBUSY if it is mounted, or part of a device-mapper or RAID device
        self.fd = os.open(self.path, flags)
        if stat.S_ISBLK(mode) and self.writable and blockdevice.is_read_only(self.fd):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))  # Linux would say so at the first write only
        return stat.S_ISBLK(mode)

    def _undo(self) -> None:
        """Close after a failed open, and remove what this open created."""
        created = self._new_name and self.fd >= 0
        self.close()
        if created:
            with contextlib.suppress(OSError):
                Path(self.path).unlink()

    def _set_size(self) -> None:
        self.size = blockdevice.size(self.fd) if self.is_device else probe.size_of(self.fd)
        # Of what a device can zero by itself; a file takes any range.
        self._alignment = blockdevice.sector_size(self.fd) if self.is_device else 1
        self._has_holes = not self.is_device and os.fstat(self.fd).st_blocks * _STAT_BLOCK < self.size
        if not self.is_device and not probe.is_served(self.fd):
            with contextlib.suppress(OSError):  # no room for it in the address space: reads do without
                self._mapping = _core.Mapping(self.fd, self.size)

    def _drop_mapping(self) -> None:
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            mapping.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def reads_in_parallel(self) -> bool:
        """Whether reads reach a device; those of a file are mostly answered by the page cache."""
        return self.is_device or self._direct_fd >= 0

    @property
    def mapping(self) -> _core.Mapping | None:
        """The file's mapping, where reads use it."""
        return self._mapping if self._direct_fd < 0 else None

    @property
    def takes_pages(self) -> bool:
        """Whether a payload may be stored as pages: in a file of the page cache."""
        return not self.is_device and self._direct_fd < 0

    def fill(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Fill `blk` from [offset, offset + nbytes), zeros past the end; return whether it is all zero."""
        if self._storing is not None:
            self._storing.drain()
        if self._mapping is not None and self._direct_fd < 0:
            is_zero = blk.fill_mapped(self._mapping, self.fd, offset, nbytes)
        else:
            is_zero = blk.fill(self._fd_for((offset, nbytes)), offset, nbytes)
        self.check_size()
        return is_zero

    def fill_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Fill `blk` from extents, one behind the other, zeros past the end."""
        self.drain()
        blk.fill_extents(self._fd_for(*extents), extents)
        self.check_size()

    def pread_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`, zeros past the end."""
        self.drain(offset, offset + view.nbytes)
        count = _core.pread_full(self.fd, view, offset) if view.nbytes else 0
        if count < view.nbytes:
            self.check_size()
            view[count:] = bytes(view.nbytes - count)

    def next_data(self, offset: int, end: int) -> tuple[int, int] | None:
        """Return the first extent in [offset, end) that may hold data, None if there are only holes."""
        self.drain()
        end = min(end, self.size)
        return _core.next_data(self.fd, offset, end) if offset < end else None

    def zeroes_end(self, offset: int) -> int:
        """Return where the first data may be at or after `offset`. Where that ends, it does not ask."""
        self.drain(offset)
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as error:
            return max(offset, self.size) if error.errno == errno.ENXIO else offset

    def check_size(self) -> None:
        """Raise :class:`OSError` if the file is shorter than it was: what lay behind its end is lost."""
        if not self.is_device and (now := os.lseek(self.fd, 0, os.SEEK_END)) < self.size:
            raise OSError(errno.EIO, f"the file was cut from {self.size} to {now} bytes while it was in use")

    # -- writing -----------------------------------------------------------------------------------------------------

    def pwrite(self, view: memoryview, offset: int) -> None:
        """Write all of `view` at `offset`."""
        self.drain(offset, offset + view.nbytes)
        if view.nbytes:
            _core.pwrite_full(self.fd, view, offset)

    def store(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Write the first `nbytes` of `blk` at `offset`; its zero clusters become holes in a file.

        Punching what is a hole already costs little; on a device each punch would be a request that waits. A whole
        block whose payload may be taken is stored a little later, by a thread: see `storing.py`.
        """
        fd = self._fd_for((offset, nbytes))
        if blk.is_movable and nbytes == _core.BLOCK_SIZE and (stores := self._storing or self._start_storing()):
            stores.put(blk, fd, offset, allocate=self._has_holes)
        else:
            self.drain()
            if self.is_device:
                blk.store(fd, offset, nbytes)
            else:
                blk.store_sparse(fd, offset, nbytes, CLUSTER, True, self._has_holes, storing.PLACES)
        self._writeback.count(nbytes)

    def store_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Write extents from `blk`, after what waits to be stored there: no earlier block may come after them."""
        self.drain(min(extents)[0], max(offset + nbytes for offset, nbytes in extents))
        blk.store_extents(self._fd_for(*extents), extents)
        self._writeback.count(sum(nbytes for _, nbytes in extents))

    def _start_storing(self) -> storing.StoringThread | None:
        if self.fd >= 0:
            with contextlib.suppress(RuntimeError):  # no more threads to be had
                self._storing = storing.StoringThread(0 if self.is_device else CLUSTER)
        return self._storing

    def drain(self, start: int = 0, stop: int = sys.maxsize) -> None:
        """Return when all that lies in [start, stop) is stored."""
        if (stores := self._storing) is not None:  # another thread may let it go meanwhile
            stores.drain(start, stop)

    def rest(self) -> None:
        """Store what waits, and let the storing thread and its memory go until the next block is stored."""
        stores, self._storing = self._storing, None
        if stores is not None:
            stores.close()

    def write_zeroes(self, offset: int, nbytes: int) -> None:
        """Make [offset, offset + nbytes) read as zeros, without storing them where that is possible."""
        end = offset + nbytes
        if self.zeroes_end(offset) >= end:
            return
        start, stop = -(-offset // self._alignment) * self._alignment, end // self._alignment * self._alignment
        if start < stop and blockdevice.zero(self.fd, start, stop, is_device=self.is_device):
            self.pwrite_zeroes(offset, start - offset)
            self.pwrite_zeroes(stop, end - stop)
        else:
            self.pwrite_zeroes(offset, nbytes)

    def pwrite_zeroes(self, offset: int, nbytes: int) -> None:
        """Write zeros as data."""
        for start in range(offset, offset + nbytes, _core.BLOCK_SIZE):
            self.pwrite(backend.ZEROS[: offset + nbytes - start], start)

    def resize(self, size: int) -> None:
        """Grow a file by a hole, or cut it. It is read without the mapping from then on."""
        self.drain(min(size, self.size))
        os.ftruncate(self.fd, size)
        self.size = size
        self._has_holes = True
        self._drop_mapping()

    def flush(self) -> None:
        """Return when what was written is on stable storage, the name of a new file included."""
        self.drain()
        self.sync()

    def sync(self) -> None:
        """Do that for what was drained. From any thread."""
        self._writeback.flush(self.fd)
        if self._new_name:
            folder.sync_folder(Path(self.path).parent)
            self._new_name = False

    def _fd_for(self, *extents: tuple[int, int]) -> int:
        """Return the descriptor to use: O_DIRECT only for what is aligned; the kernel keeps both coherent."""
        return self.fd if self._direct_fd < 0 or not direct_io.is_aligned(extents) else self._direct_fd

    def __del__(self) -> None:
        """Close a file that was forgotten: its locks would keep others, and this program, from using it."""
        try:
            self.close()
        except OSError as error:  # nobody is there to be told, and a traceback helps nobody
            _logger.warning("%s: %s", self.path, error)

    def close(self) -> None:
        """Store what waits, close the file and drop its locks, after an error too; closing twice does no harm.

        Raises the error of a block that could not be stored, unless a call before has.
        """
        stores, self._storing = self._storing, None
        try:
            if stores is not None:
                stores.close()  # first: it must not store into what gets this descriptor next
        finally:
            aside.await_answer(self.fd)
            self._drop_mapping()
            fds, self.fd, self._direct_fd = (self.fd, self._direct_fd), -1, -1
            if self._is_locked:
                self._is_locked = False
                locks.release(fds[0], pid=self._pid)
            with contextlib.ExitStack() as closing:  # both, whatever the first one has to tell
                for fd in fds:
                    if fd >= 0:
                        closing.callback(os.close, fd)
