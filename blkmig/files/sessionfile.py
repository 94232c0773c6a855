# SPDX-License-Identifier: GPL-2.0-or-later
"""The session file: what one end of a migration has decided, so that it is known after that process is killed.

It is beside the disk ``vda.raw`` as ``.vda.raw.blkmig``, or in a folder for all of them, and has two slots of one
size::

    slot    "blkmigS1"  u64 number  u32 n  u32 CRC-32 of number and text  n bytes: the text, a JSON object

A store overwrites the slot that does not count, with the next number, and is one fdatasync: the whole slot with the
higher number counts. If that was not flushed, or another process has stored it, it is flushed before the other one is
overwritten. Both slots are written from the beginning, so that a store needs no space, and waits for no journal of the
file system, which may have to bring the blocks of a whole disk to storage first. Of a store that was cut short nothing
counts; one of which the fdatasync failed may count or not, and nobody knows before a power failure.

Whoever has it holds a lock on it, stopped or not; a second process is refused. A process that finds one stores again
what it has read before it acts on it: what a failed store has left in the page cache is no proof.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from .. import errors, logs
from . import folder, locks

SUFFIX: Final = ".blkmig"
MAGIC: Final = b"blkmigS1"
PAGE: Final = 4096
MAX_BYTES: Final = 4 << 20
"""Nobody reads a longer one: 256 disks with the longest of names have less."""

_logger = logs.Logger(__name__)

_DIGEST_CHARACTERS: Final = 16
_HEAD: Final = struct.Struct(">8sQII")
_OF_NO_FILE: Final = frozenset({errno.EISDIR, errno.ELOOP, errno.ENXIO})
"""What opening a folder, a link or a socket says."""

_ROOM: Final = 512
"""Bytes by which the text may grow in later stores."""


def session_name(name: str) -> str:
    """Return what the session file beside the disk `name` is called."""
    return folder.hidden_name(name, SUFFIX)


def where(disk: str, state_dir: str | None) -> tuple[Path, str]:
    """Return the folder of the session file of the disk at a path or a URI, and the name that it has there in full.

    In a folder for all, disks of one name in several places have files of several names.
    """
    path = Path(disk)
    if state_dir is None:
        return path.parent, path.name
    import hashlib  # here: beside their disks they need none

    return Path(state_dir), f"{path.name}-{hashlib.sha256(os.fsencode(disk)).hexdigest()[:_DIGEST_CHARACTERS]}"


class Disk(NamedTuple):
    """One disk of a session: where it is, and of a file that is made, which one."""

    path: str
    """The name that it has, or gets; a URI of what is no file."""

    is_file: bool = True
    inode: int | None = None
    replaces: int | None = None
    """The file that has the name until then."""

    size: int | None = None
    """How large the source says that the disk is, in bytes."""

    def says(self) -> dict[str, Any]:
        """Return what the text says of it."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class SessionFile:
    """The session file of the disk `name` in `place`, open and locked, from the beginning to `remove` or `close`.

    Errors are :class:`OSError`, and :class:`~blkmig.errors.DeviceBusy` if another process has it, which messages call
    that of `device`.
    """

    def __init__(self, place: folder.Folder, name: str, *, device: str, create: bool = True) -> None:
        """Open it, or with `create` make an empty one; else FileNotFoundError."""
        self._place = place
        self._name = session_name(name)
        self.path = str(place.path / self._name)
        self._number = 0
        self._slot = 1
        """The slot that counts; the other one is overwritten next."""

        self._is_flushed = False
        """The slot that counts is on stable storage for sure."""

        self.says: dict[str, Any] = {}
        """What it says; empty for one in which nothing was stored."""

        self.stored_at = 0.0
        """When that was stored, by the clock of the file system, if it was there before."""

        self._pid = os.getpid()
        self._fd = -1
        while self._fd < 0:
            self._open(device, create=create)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _open(self, device: str, *, create: bool) -> None:
        """Open and lock it; it is not open if whoever had it has removed it meanwhile."""
        try:
            self._fd = fd = self._place.open(self._name, os.O_RDWR | (os.O_CREAT if create else 0))
        except OSError as error:
            if error.errno in _OF_NO_FILE:
                raise self.damaged(f" ({error.strerror})") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self.close()
            raise self.damaged()
        is_locked = locks.hold_being_made(fd)
        if is_locked and self._place.is_named(self._name, fd):
            return
        self.close()
        if not is_locked:
            cause = f"another blkmig has its session file {self.path}"
            raise errors.DeviceBusy("cannot be migrated", device=device, cause=cause)

    def _read(self) -> None:
        about = os.fstat(self._fd)
        nbytes, self.stored_at = about.st_size, about.st_mtime
        half = nbytes // 2
        if nbytes > MAX_BYTES or half % PAGE:
            raise self.damaged()
        slots = [os.pread(self._fd, half, start) for start in (0, half)] if nbytes else []
        found = [(*parsed, index) for index, slot in enumerate(slots) if (parsed := _parse(slot)) is not None]
        if slots and not found and all(map(any, slots)):
            raise self.damaged()  # not one that was cut short when it was made
        if found:
            self._number, text, self._slot = max(found, key=lambda slot: slot[0])
            self.says = self._decoded(text)

    def _decoded(self, text: bytes) -> dict[str, Any]:
        """Return what a text says that came whole: nobody but blkmig writes one, and yet it is looked at."""
        try:
            says = json.loads(text)
        except (ValueError, RecursionError) as error:  # the latter for lists in lists in lists
            raise self.damaged() from error
        if not isinstance(says, dict):
            raise self.damaged()
        return says

    @property
    def is_private(self) -> bool:
        """Whether nobody but this user may open it; one that was there before may be somebody else's."""
        about = os.fstat(self._fd)
        return about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077

    def damaged(self, why: str = "") -> OSError:
        """Return the error of a file that no blkmig has written."""
        return OSError(
            errno.EUCLEAN,
            f"{self.path} is no session file of blkmig, or damaged{why}: remove it when you know what it is",
        )

    def begin(self, says: Mapping[str, Any], *, is_durable: bool = True) -> None:
        """Store what a new session says; its later stores may add a few hundred bytes."""
        half = -(-(_HEAD.size + len(_encode(says)) + _ROOM) // PAGE) * PAGE
        os.ftruncate(self._fd, 0)
        os.posix_fallocate(self._fd, 0, 2 * half)
        os.pwrite(self._fd, bytes(2 * half), 0)  # into what is there for it
        self._number, self._slot, self._is_flushed = 0, 1, True
        self.store(says, is_durable=is_durable)
        if is_durable:
            os.fsync(self._fd)
            self._place.sync()

    def store(self, says: Mapping[str, Any], *, is_durable: bool = True) -> None:
        """Store what it says from now on; it is on stable storage when this returns, if it `is_durable`. Blocks."""
        text, number = _encode(says), self._number + 1
        half = os.fstat(self._fd).st_size // 2
        slot = _HEAD.pack(MAGIC, number, len(text), _checksum(number, text)) + text
        if len(slot) > half:
            raise OSError(errno.EFBIG, "more than it has room for is to be noted: migrate fewer disks at a time")
        if is_durable and not self._is_flushed:  # first: else the slot that is overwritten may be all that storage has
            os.fdatasync(self._fd)
            self._is_flushed = True
        self._number = number  # spent, whatever becomes of it
        if os.pwrite(self._fd, slot, (1 - self._slot) * half) < len(slot):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if is_durable:
            os.fdatasync(self._fd)
        self._slot, self._is_flushed = 1 - self._slot, is_durable
        self.says = dict(says)

    def remove(self) -> None:
        """Remove it, and let it go. Never raises: where that fails, it is said, and what it says stays."""
        self._close(self.unlink())

    def unlink(self) -> int:
        """Remove it as `remove` does, and return its descriptor, or -1; the caller closes it: that takes its time."""
        try:
            self._place.unlink(self._name, self._fd)
        except OSError as error:
            _logger.warning("%s is not needed any more, and cannot be removed: %s", self.path, error.strerror or error)
        return self._let_go()

    def close(self) -> None:
        """Let it go as it is. Twice does no harm."""
        self._close(self._let_go())

    @staticmethod
    def _close(fd: int) -> None:
        if fd >= 0:
            os.close(fd)

    def _let_go(self) -> int:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            locks.release(fd, pid=self._pid)
        return fd


def _encode(says: Mapping[str, Any]) -> bytes:
    return json.dumps(says, separators=(",", ":")).encode()


def _checksum(number: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(number.to_bytes(8, "big")))


def _parse(slot: bytes) -> tuple[int, bytes] | None:
    """Return number and text of a slot; None if it is not whole."""
    if len(slot) < _HEAD.size:
        return None
    magic, number, length, checksum = _HEAD.unpack_from(slot)
    text = slot[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or len(text) != length or checksum != _checksum(number, text):
        return None
    return number, text
