# SPDX-License-Identifier: GPL-2.0-or-later
"""Which file is it: files and devices known by device and inode, not by what they are called.

One file has many names: hard links, symlinks, bind mounts, a loop device over it, a partition of a disk. So whatever is
read or written is noted as a :class:`KnownFile` when it is opened, and three questions are answered from that: whether
two of them are the same bytes, whether its name still leads to it, and whether somebody has changed it since.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_SYSFS = Path("/sys/dev/block")

Key = tuple[str, int, int, str]
"""("file", device, inode, ""), ("device", major, minor, ""), or ("name", folder's device, its inode, NAME)."""


class KnownFile(NamedTuple):
    """A file or a device as it was when it was opened; `about` is None for one that did not exist yet.

    `is_tracked` says that writes to it are expected and known: it is a target, or somebody marks them.
    """

    path: str
    about: os.stat_result | None
    is_tracked: bool = True

    @classmethod
    def of(cls, path: str | os.PathLike[str], *, fd: int | None = None, is_tracked: bool = True) -> KnownFile:
        """Note what `path` is, or what `fd`, opened under that name, is. Raises :class:`OSError`."""
        name = os.path.abspath(path)  # noqa: PTH100 - what Path.absolute() leaves of "..", a later chdir would change
        try:
            return cls(name, os.fstat(fd) if fd is not None else Path(name).stat(), is_tracked)
        except (FileNotFoundError, NotADirectoryError):
            return cls(name, None, is_tracked)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return self.about is not None and stat.S_ISREG(self.about.st_mode)

    @property
    def is_device(self) -> bool:
        """Whether it is a block device."""
        return self.about is not None and stat.S_ISBLK(self.about.st_mode)

    @property
    def holds_bytes(self) -> bool:
        """Whether it is a regular file or a block device: what is written there can be read again."""
        return self.is_regular or self.is_device

    @property
    def key(self) -> Key | None:
        """Return what tells it from all others; None if not even its folder is there."""
        if self.about is not None:
            return _key_of(self.about)
        with contextlib.suppress(OSError):
            real = Path(self.path).resolve()
            folder = real.parent.stat()
            return ("name", folder.st_dev, folder.st_ino, real.name)
        return None

    def is_still_named(self) -> bool:
        """Return whether its name still leads to it."""
        if self.about is None:
            return True
        try:
            return _key_of(Path(self.path).stat()) == _key_of(self.about)
        except OSError:
            return False

    def as_it_is_now(self) -> KnownFile:
        """Return it with its present size and times; unchanged if its name leads elsewhere by now."""
        with contextlib.suppress(OSError):
            now = Path(self.path).stat()
            if self.about is not None and _key_of(now) == _key_of(self.about):
                return self._replace(about=now)
        return self

    def change(self) -> str | None:
        """Return what somebody has done to it since it was opened, None for nothing that can be seen."""
        if self.about is None or not self.holds_bytes:
            return None
        try:
            now = Path(self.path).stat()
        except OSError:
            return "was removed"
        if _key_of(now) != _key_of(self.about):
            return "was replaced by another file"
        if self.is_tracked or not self.is_regular:
            return None
        if now.st_size != self.about.st_size:
            verb = "grew" if now.st_size > self.about.st_size else "was cut"
            return f"{verb} from {self.about.st_size} to {now.st_size} bytes"
        if (now.st_mtime_ns, now.st_ctime_ns) != (self.about.st_mtime_ns, self.about.st_ctime_ns):
            return "was changed by another program"
        return None


def is_same(one: KnownFile, other: KnownFile) -> bool:
    """Return whether writing to one would change what is read from the other."""
    if one.key is None or other.key is None:
        return False
    return bool(_names(one.key) & _covers(other.key) or _names(other.key) & _covers(one.key))


def first_conflict(some: Iterable[KnownFile], others: Iterable[KnownFile]) -> tuple[KnownFile, KnownFile] | None:
    """Return the first of `some` that is one of the `others`, with that one."""
    known = list(others)
    return next(((one, other) for one in some for other in known if is_same(one, other)), None)


def _key_of(about: os.stat_result) -> Key:
    if stat.S_ISBLK(about.st_mode):
        return ("device", os.major(about.st_rdev), os.minor(about.st_rdev), "")
    return ("file", about.st_dev, about.st_ino, "")


def _names(key: Key) -> set[Key]:
    """Return everything that is exactly these bytes: a loop device over a whole file is that file."""
    found = {key}
    for below, is_whole in _below(key):
        if is_whole:
            found |= _names(below)
    return found


def _covers(key: Key) -> set[Key]:
    """Return everything that a write there may change: a partition lies on its disk, a mapped device on others."""
    found = {key}
    for below, _ in _below(key):
        found |= _covers(below)
    return found


def _below(key: Key) -> Iterator[tuple[Key, bool]]:
    """Yield what a device stands on, and whether it shows all of that; nothing for a file."""
    kind, major, minor, _ = key
    if kind != "device":
        return
    with contextlib.suppress(OSError, ValueError):
        entry = (_SYSFS / f"{major}:{minor}").resolve(strict=True)
        if (entry / "partition").exists():
            yield _device_key(entry.parent), False
        for slave in (entry / "slaves").glob("*"):
            yield _device_key(slave), False
        if (entry / "loop" / "backing_file").exists():
            name, offset, limit = (os.fsdecode((entry / "loop" / what).read_bytes()) for what in _LOOP)
            yield _key_of(Path(name.rstrip("\n")).stat()), (int(offset), int(limit)) == (0, 0)


_LOOP = ("backing_file", "offset", "sizelimit")


def _device_key(entry: Path) -> Key:
    major, minor = (entry / "dev").read_text().split(":")
    return ("device", int(major), int(minor), "")
