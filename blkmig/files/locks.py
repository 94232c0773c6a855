# SPDX-License-Identifier: GPL-2.0-or-later
"""Image locks, the way QEMU takes them, so that neither writes a disk that the other uses.

What a program does to an image is told by locks on single bytes of the file::

    byte  100 + i    "I use permission i"               i: 0 consistent read
    byte  200 + i    "I do not share permission i"         1 write
                                                           2 write unchanged
                                                           3 resize

All locks are shared ones (F_RDLCK) of the open file description, so they never collide with each other. Whoever
opens an image **first takes its own locks, then looks** whether somebody holds the opposite bytes: of two that
start at once, at least one sees the other. The kernel drops the locks with the last duplicate of the descriptor.

No lock does not mean unused: only QEMU and its tools take them (and not with locking=off, nor for a guest that waits
for an incoming migration).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from .. import errors, logs
from . import lockholders

CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE = range(4)

_NAMES = ("consistent read", "write", "write unchanged", "resize")
_USED = 100
_UNSHARED = 200
_BEING_MADE = 300  # a byte of our own: held by who makes the file, before anybody else may use it
_F_OFD_GETLK = 36  # not in the fcntl module; the same number on every Linux
_F_OFD_SETLK = 37
FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid (0 for these locks)
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})

_logger = logs.Logger(__name__)


class Permissions(NamedTuple):
    """What the holder does to an image, and what it lets nobody else do."""

    doing: str
    used: tuple[int, ...]
    unshared: tuple[int, ...]


READER = Permissions("reading", used=(CONSISTENT_READ,), unshared=(WRITE, RESIZE))
"""The image must not change: it is a base, or the source of a copy whose changes nobody tracks. Readers share it."""

WRITER = Permissions(
    "writing", used=(CONSISTENT_READ, WRITE, RESIZE), unshared=(WRITE, WRITE_UNCHANGED, RESIZE)
)
"""The image changes by the holder alone: a target, or a live source whose writers are in this process."""


def acquire(fd: int, permissions: Permissions, *, device: str) -> None:
    """Lock the image open at `fd`, which must be open for reading, until `release` or its last duplicate is closed.

    Raises :class:`~blkmig.errors.DeviceBusy`, naming the permission, if another program (or another descriptor of
    this one) is in the way; close the descriptor then. Where the file system has no locks it does nothing but log.
    """
    try:
        for permission in permissions.used:
            _lock(fd, _USED + permission)
        for permission in permissions.unshared:
            _lock(fd, _UNSHARED + permission)
        for permission in permissions.unshared:
            if _is_locked(fd, _USED + permission):
                raise _busy(fd, permissions, device, "holds", permission)
        for permission in permissions.used:
            if _is_locked(fd, _UNSHARED + permission):
                raise _busy(fd, permissions, device, "does not share", permission)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            cause = f"another program locks it exclusively{lockholders.describe(fd)}"
            raise errors.DeviceBusy(f"cannot be opened for {permissions.doing}", device=device, cause=cause) from error
        if error.errno not in _UNSUPPORTED:
            raise errors.DeviceError("cannot be locked", device=device, cause=error) from error
        _logger.warning("disk %r: its file system has no image locks; make sure that nothing else uses it", device)


def release(fd: int, *, pid: int) -> None:
    """Unlock the image open at `fd`; never raises. Call it before closing, because closing is not enough.

    Duplicates of the descriptor keep the locks: those of a forked child, and a mapping of the file as long as its pages
    are in use. Process `pid` took the locks: a child of it that closes its duplicate must leave them.
    """
    if pid != os.getpid():
        return
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def close(fd: int, *, pid: int) -> None:
    """Unlock the image open at `fd`, as `release` does, and close it."""
    release(fd, pid=pid)
    os.close(fd)


def hold_being_made(fd: int) -> bool:
    """Lock the file open at `fd` as one that is being made, beside all image locks; False if somebody else makes it.

    Where the file system has no locks, True. Raises :class:`OSError`.
    """
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BEING_MADE, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in _UNSUPPORTED:
            raise
    return True


def is_taken(fd: int) -> bool:
    """Return whether another program makes the file open at `fd`, or has an image there that `WRITER` could not lock.

    An empty file is no image. Locks nothing; False where the file system has no locks. Raises :class:`OSError`.
    """
    ours, theirs = [], [_BEING_MADE]
    if os.fstat(fd).st_size:
        ours = [_USED + permission for permission in WRITER.used]
        ours += [_UNSHARED + permission for permission in WRITER.unshared]
        theirs += [_USED + permission for permission in WRITER.unshared]
        theirs += [_UNSHARED + permission for permission in WRITER.used]
    try:
        is_refused = any(_is_locked(fd, byte, fcntl.F_RDLCK) for byte in ours)
        return is_refused or any(_is_locked(fd, byte) for byte in theirs)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False


def _busy(fd: int, permissions: Permissions, device: str, does: str, permission: int) -> errors.DeviceBusy:
    cause = (
        f'another program {does} the "{_NAMES[permission]}" permission{lockholders.describe(fd)} '
        f"(a QEMU? Stop it first, or send the disk of a "
        f"running one as qemu:SOCKET; or it is open in this program already)"
    )
    return errors.DeviceBusy(f"cannot be opened for {permissions.doing}", device=device, cause=cause)


def _lock(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, _F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))


def _is_locked(fd: int, byte: int, lock: int = fcntl.F_WRLCK) -> bool:
    """Return whether somebody else holds `byte`: would such a lock of ours be refused?"""
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, FLOCK.pack(lock, os.SEEK_SET, byte, 1, 0))
    lock_type: int = FLOCK.unpack(answer)[0]
    return lock_type != fcntl.F_UNLCK
