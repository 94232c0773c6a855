# SPDX-License-Identifier: GPL-2.0-or-later
"""A file on a file system that can stop to answer, as a FUSE server that is stopped, or an NFS server that is gone.

The server is a thread of the test, and speaks FUSE's protocol with the kernel. Only other processes may use the file:
one that waits for its own thread would never end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import peers

GETATTR, SETATTR, OPEN, READ, WRITE, RELEASE, FSYNC, FLUSH, INIT = 3, 4, 14, 15, 16, 18, 20, 25, 26
MNT_DETACH = 2
_IN, _OUT = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
_PIECE, _BIG_WRITES = 1 << 17, 1 << 5
_LIBC = ctypes.CDLL(None, use_errno=True)


class StoppedFile:
    """The file at `path`, which holds `content`. It answers until `count` requests of the kind `last` were answered,
    and takes no further one. (Where a server has taken one, not even SIGKILL ends who waits for the answer.)"""

    def __init__(self, path: Path, content: bytearray, *, last: int, count: int) -> None:
        self.path, self._content = path, content
        self._last, self._left = last, count
        self.is_stopped = threading.Event()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._end = os.eventfd(0)
        options = f"fd={self._fd},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0"
        if _LIBC.mount(b"stopped", os.fsencode(path), b"fuse.stopped", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "cannot be mounted")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Unmount it: whoever waits for an answer gets an error."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        _LIBC.umount2(os.fsencode(self.path), MNT_DETACH)
        for fd in (self._fd, self._end):
            os.close(fd)

    def _serve(self) -> None:
        while not self.is_stopped.is_set():
            if self._end in select.select([self._fd, self._end], [], [])[0]:
                return
            request = os.read(self._fd, _PIECE + (1 << 13))
            _, kind, unique, *_ = _IN.unpack_from(request)
            answer = self._answer(kind, request[_IN.size :])
            if answer is not None:
                error, body = (answer, b"") if isinstance(answer, int) else (0, answer)
                os.write(self._fd, _OUT.pack(_OUT.size + len(body), -error, unique) + body)
            if kind == self._last:
                self._left -= 1
                if self._left == 0:
                    self.is_stopped.set()

    def _answer(self, kind: int, body: bytes) -> bytes | int | None:
        match kind:
            case _ if kind in (FLUSH, RELEASE, FSYNC):
                return b""
            case _ if kind == INIT:
                return struct.pack("<IIIIHHIIHHI28x", 7, 31, _PIECE, _BIG_WRITES, 16, 12, _PIECE, 1, 32, 0, 0)
            case _ if kind in (GETATTR, SETATTR):
                size = len(self._content)
                about = struct.pack("<6Q10I", 1, size, size >> 9, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0,
                                    4096, 0)  # fmt: skip
                return struct.pack("<QII", 3600, 0, 0) + about
            case _ if kind == OPEN:
                return struct.pack("<QII", 1, 0, 0)
            case _ if kind == READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                return bytes(self._content[offset : offset + size])
            case _ if kind == WRITE:
                _, offset, size = struct.unpack_from("<QQI", body)
                self._content[offset : offset + size] = body[40 : 40 + size]
                return struct.pack("<II", size, 0)
            case _ if kind in (2, 42):  # FORGET, which has no answer
                return None
        return errno.ENOSYS


@contextlib.contextmanager
def stopped_file(path: Path, content: bytearray, *, last: int, count: int) -> Iterator[StoppedFile]:
    """Mount such a file at `path`; skip where that cannot be."""
    path.touch()
    try:
        file = StoppedFile(path, content, last=last, count=count)
    except OSError as error:
        peers.lacking(f"/dev/fuse, and root to mount a file ({error})")
    with contextlib.closing(file):
        yield file
