# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder that is held open: its files are reached through it, by a name alone and never through a link.

Whoever moves or replaces the folder, or puts a symlink in the place of a file, changes nothing for whoever holds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

MAX_NAME_BYTES = 255
"""Bytes of a file's name at most, on every usual file system of Linux."""

SECOND_SUFFIX = ".blkmig-second"
"""How a file is called, hidden, in the moment in which it replaces another one."""

_DIGEST_CHARACTERS = 16
_RENAME_NOREPLACE = 1
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EXDEV})


def hidden_name(name: str, suffix: str) -> str:
    """Return the name of a hidden file that belongs to the file `name`: always the same, and never too long."""
    plain = f".{name}{suffix}"
    if len(os.fsencode(plain)) <= MAX_NAME_BYTES:
        return plain
    import hashlib  # here: hardly any name is as long

    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:_DIGEST_CHARACTERS]
    room = MAX_NAME_BYTES - len(suffix) - len(digest) - 2
    return f".{os.fsdecode(os.fsencode(name)[:room])}-{digest}{suffix}"


def is_hidden_name(name: str, suffix: str) -> bool:
    """Return whether a file of this name may be one of those."""
    return name.startswith(".") and name.endswith(suffix) and len(name) > len(suffix) + 1


def look_like(fd: int, replaced: os.stat_result) -> None:
    """Give the file open at `fd` the mode of the one that it replaces, and its owner where we may."""
    os.fchmod(fd, stat.S_IMODE(replaced.st_mode))
    with contextlib.suppress(PermissionError):
        os.fchown(fd, replaced.st_uid, replaced.st_gid)


class Folder:
    """The folder at `path`. Every call raises :class:`OSError`; `close` may be called twice."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        """Open it; with `create`, make it and what is missing above it, for this user only, on stable storage. Blocks.
        """
        self.path = Path(path).absolute()
        self.made: list[Path] = []
        """The folders that were made, the outermost first."""

        try:
            if create:
                self._make()
            self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            remove_empty(self.made)
            raise

    def _make(self) -> None:
        for folder in (*reversed(self.path.parents), self.path):
            if not os.path.lexists(folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                self.made.append(folder)
                sync_folder(folder.parent)  # `sync` is for the names in it, not for its own

    def check_writable(self) -> None:
        """Raise if no file can be made in it, as far as its permissions tell."""
        if os.fstatvfs(self._fd).f_flag & os.ST_RDONLY:  # first: access() says no more than no
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._fd, effective_ids=True):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def check_is_there(self) -> None:
        """Raise if its path leads to another folder by now, or to none: what it holds is not found there."""
        is_there = False
        with contextlib.suppress(OSError):
            is_there = os.path.samestat(self.path.stat(), os.fstat(self._fd))
        if not is_there:
            raise FileNotFoundError(errno.ENOENT, f"{self.path} was moved or replaced meanwhile")

    def stat(self, name: str) -> os.stat_result | None:
        """Return what `name` is, a link itself and not where it leads; None if there is nothing."""
        try:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """Open a file of the folder; ELOOP for a link, whose target may be anywhere."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=self._fd)

    def unlink(self, name: str, fd: int) -> bool:
        """Remove `name` if it is the file open at `fd`; return whether it was."""
        if not self.is_named(name, fd):
            return False
        os.unlink(name, dir_fd=self._fd)
        return True

    def is_named(self, name: str, fd: int) -> bool:
        """Return whether `name` is the file open at `fd`."""
        there = self.stat(name)
        return there is not None and os.path.samestat(there, os.fstat(fd))

    def is_kept_by_sticky_bit(self, fd: int) -> bool:
        """Return whether the folder is one like /tmp, where nobody but their owners removes names of the file at `fd`.
        """
        about = os.fstat(self._fd)
        return bool(about.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, about.st_uid, os.fstat(fd).st_uid)

    def link(self, old: str, new: str) -> bool:
        """Give the file `old` the name `new`, too; False where the file system has no links, EEXIST if `new` exists."""
        try:
            os.link(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        return True

    def give_name(self, old: str, new: str, *, replace: bool = False) -> None:
        """Give the file `old` the name `new`; EEXIST if there is one, unless it is to `replace` that.

        `old` stays a name of it, where there can be two, and should until the new one is on stable storage: without a
        journal, a file system that brings the end of `old` there first loses both. A second name may take room that the
        file system does not have; to take the first one away needs none.
        """
        second = hidden_name(new, SECOND_SUFFIX) if replace else new  # a link replaces nothing, a rename does
        try:
            if replace:
                self._remove(second)  # of a run that was killed here
            has_both = self.link(old, second)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            has_both = False
        if not has_both:
            self.rename(old, new, replace=replace)
        elif replace:
            try:
                self.rename(second, new, replace=True)
            except OSError:
                self._remove(second)
                raise

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def rename(self, old: str, new: str, *, replace: bool) -> None:
        """Call the file `old` `new`; without `replace`, EEXIST if there is such a file."""
        if not replace and not self._rename_noreplace(old, new):
            if self.stat(new) is not None:  # a file system without either: the best that can be done
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            replace = True
        if replace:
            os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _rename_noreplace(self, old: str, new: str) -> bool:
        """Return whether the system could do it."""
        import ctypes  # here: only what is made anew is renamed

        call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if call is None:
            return False
        if call(self._fd, os.fsencode(old), self._fd, os.fsencode(new), ctypes.c_uint(_RENAME_NOREPLACE)):
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EINVAL):
                return False
            raise OSError(number, os.strerror(number))
        return True

    def sync(self) -> None:
        """Return when the names in the folder are on stable storage."""
        sync_folder(".", dir_fd=self._fd)

    def close(self) -> None:
        """Let the folder go."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def remove_empty(made: list[Path]) -> None:
    """Remove folders that were made, the outermost first in the list, and forget them; those that hold something stay.
    """
    while made:
        with contextlib.suppress(OSError):
            made.pop().rmdir()


def is_mount_point(path: Path) -> bool:
    """Return whether something is mounted on the file at `path`: it can be written then, but not replaced.

    So are files that a container gets. Where the system does not tell, it counts as no mount point.
    """
    with contextlib.suppress(OSError, StopIteration):
        return _mount_of(path) != _mount_of(path.parent)
    return False


def _mount_of(path: Path) -> str:
    """Return the number of the mount through which `path` is reached. Raises OSError, or StopIteration."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        about = Path(f"/proc/self/fdinfo/{fd}").read_text()
        return next(line for line in about.splitlines() if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def sync_folder(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Return when the names in the folder at `path` are on stable storage. Raises :class:`OSError`."""
    with contextlib.suppress(PermissionError):  # whoever may write in it, but not list it, cannot sync it either
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
