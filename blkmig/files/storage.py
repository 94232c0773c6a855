# SPDX-License-Identifier: GPL-2.0-or-later
"""What the storage below a file holds, past the page cache.

O_DIRECT reads it. Where a file system does not do that, the kernel is asked to drop its pages, and to say whether it
has: a page that is still there was not read from the storage, and that is told.
"""

from __future__ import annotations

import errno
import mmap
import os

from .. import _core, aside, errors
from ..disk import storage
from . import direct, rawfile

_ROOM = _core.BLOCK_SIZE + 2 * direct.ALIGNMENT


class FileReader(storage.StorageReader):
    """Reads the file of `top`, which stays open meanwhile; `device` names the disk in errors.

    With `drops_cache`, a target's, pages are dropped where O_DIRECT cannot be; a source's pages stay with its guest.
    """

    is_beside_writes = True

    def __init__(self, top: rawfile.RawFile, *, device: str, drops_cache: bool) -> None:
        self._top = top
        self._device = device
        self._drops_cache = drops_cache
        self._memory = mmap.mmap(-1, _ROOM)
        self._view = memoryview(self._memory)
        self._is_direct = True
        with errors.failing("cannot be opened a second time", device=device):
            try:
                self._fd = direct.open_again(top.fd, writable=False)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_direct = False
                self._fd = os.open(f"/proc/self/fd/{top.fd}", os.O_RDONLY | os.O_CLOEXEC)
                self.why_not_storage = "its file system reads from memory only"
        if not self._is_direct and drops_cache:
            self.why_not_storage = ""  # until a page is found that was not dropped

    def settle(self) -> None:
        """Store what waits, and bring it to the disk: by a descriptor of its own, so its errors are told to both."""
        with errors.failing("cannot flush", device=self._device):
            self._top.drain()
            os.fdatasync(self._fd)

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Read whole pages around what is asked for."""
        start = offset // direct.ALIGNMENT * direct.ALIGNMENT
        stop = -(-(offset + nbytes) // direct.ALIGNMENT) * direct.ALIGNMENT
        with errors.failing("cannot read back", device=self._device, offset=offset, nbytes=nbytes):
            self._top.drain(offset, offset + nbytes)
            if not self._is_direct and self._drops_cache:
                self._drop(start, stop - start)
            done = start
            while done < offset + nbytes:
                count = os.preadv(self._fd, [self._view[done - start : stop - start]], done)
                if not count:
                    raise OSError(errno.EIO, "the file was cut while it was in use")
                done += count
        return self._view[offset - start : offset - start + nbytes]

    def _drop(self, start: int, nbytes: int) -> None:
        os.posix_fadvise(self._fd, start, nbytes, os.POSIX_FADV_DONTNEED)
        if not self.why_not_storage and is_resident(self._fd, start, nbytes):
            self.why_not_storage = "the kernel keeps it in memory"

    def next_data(self, offset: int) -> int:
        """Ask the file system."""
        with errors.failing("cannot look for data", device=self._device, offset=offset):
            return self._top.zeroes_end(offset)

    def close(self) -> None:
        """Close the second descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            aside.await_answer(fd)
            os.close(fd)


def is_resident(fd: int, start: int, nbytes: int) -> bool:
    """Return whether the page cache has a page of this range, which begins at a page; True if that cannot be told."""
    nbytes = min(nbytes, os.fstat(fd).st_size - start)
    if nbytes <= 0:
        return False
    import ctypes  # where it is used: hardly any file system needs this

    # A private mapping is one that Python tells the address of; nobody writes to it, so it shows the file's pages.
    with mmap.mmap(fd, nbytes, flags=mmap.MAP_PRIVATE, offset=start) as pages:
        states = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(pages)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(nbytes), states)
        del first
    return bool(failed) or any(state & 1 for state in states)
