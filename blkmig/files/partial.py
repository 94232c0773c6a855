# SPDX-License-Identifier: GPL-2.0-or-later
"""Half-made targets: what blkmig makes carries a mark of its own until it is complete, whatever ends the run.

The mark is a second name in the same folder. A new file has no other one until it is complete::

    begin            .vda.raw.blkmig-partial                made, locked
    publish, sync    .vda.raw.blkmig-partial = vda.raw      complete: a hard link, which never replaces a file
    confirm, sync                              vda.raw      the other end has its word

What the other end has handed over for good needs no mark any more: a session file says so. Then `unmark` removes it
before the word, never before a sync: else a file system without a journal may lose both names, and not only the mark.

An empty file that somebody has prepared keeps its name, owner and mode, and has the mark beside it from the beginning
to that moment. So a file that is half made, or whose word was never given, is known by its mark for good: the next
run finds it unlocked, because the lock ends with whoever held it, and begins again: with the same file, whose contents
are dropped, unless the migration resumes the earlier one (`take_up`).

Of two receivers of one file the second one is refused by the lock. It is on a byte that QEMU does not use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Literal

from .. import errors
from . import folder, locks, sessionfile

SUFFIX = ".blkmig-partial"
_ATTEMPTS = 16

State = Literal["begun", "published", "gone"]


def partial_name(name: str) -> str:
    """Return what a file is called while it is being made: always the same for the same `name`, and never too long."""
    return folder.hidden_name(name, SUFFIX)


def check_takes_files(real: Path) -> None:
    """Raise :class:`OSError` if no file is to be made at `real`, which leads through no link and is not there.

    Among the devices that is the name of one that is missing, and a file would fill the machine's memory.
    """
    if real.is_relative_to("/dev") and not real.is_relative_to("/dev/shm"):
        raise FileNotFoundError(errno.ENOENT, "there is no such device, and files are not made there")


class Partial:
    """The file `name` of `place` in the making, for the disk `device`. Its errors are :class:`OSError` and DeviceBusy.

    `fd` is open for reading and writing; `mark` is the name that it has now. With `take_up`, what a run before this one
    has left is kept, until `begin_anew`. What exists is replaced at the end with `replace`. An empty file is made in
    its place, and so is a file on which something is mounted, as in a container: it cannot be replaced, and is emptied
    at once. Whoever begins one ends it with `confirm` or `discard`.
    """

    def __init__(
        self, place: folder.Folder, name: str, *, device: str, replace: bool = False, take_up: bool = False
    ) -> None:
        if len(os.fsencode(name)) > folder.MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if place.stat(name) is None:
            check_takes_files(Path(os.path.realpath(place.path), name))
        self.mark = partial_name(name)
        self.name = name
        self.fd = self._replaced_fd = -1
        self._place = place
        self._device = device
        self._pid = os.getpid()
        self._replaced: os.stat_result | None = None
        self._is_in_place = self._is_kept = False
        self._state: State = "gone"
        self.is_taken_up = False
        """A run before this one has left it, and it holds what that has received."""

        try:
            self._begin(replace, take_up=take_up)
        except BaseException:
            self._close()
            raise

    @property
    def path(self) -> str:
        """Return the path that it has now."""
        return str(self._place.path / (self.name if self._is_in_place else self.mark))

    # -- beginning ---------------------------------------------------------------------------------------------------

    def _begin(self, replace: bool, *, take_up: bool) -> None:
        missing: FileNotFoundError | None = None
        for _ in range(_ATTEMPTS):  # somebody else may be at it, too
            self.is_taken_up = self._meet_stale(take_up=take_up)
            there = self._place.stat(self.name)
            if there is not None and not stat.S_ISREG(there.st_mode):
                raise FileExistsError(errno.EEXIST, "it is there, and no regular file")
            if self.is_taken_up and self._place.is_named(self.name, self.fd):
                self._is_in_place, self._state = True, "begun"
                return
            if there is not None and there.st_size and not replace:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._is_in_place = there is not None and (
                not there.st_size or folder.is_mount_point(self._place.path / self.name)
            )
            if self._is_in_place and self.is_taken_up:  # it was made after the one that is left
                self._forget()
            missing = None
            try:
                if (self.is_taken_up or self._open()) and self._is_mine():
                    if there is not None and there.st_size:
                        self._take_over()
                    self._state = "begun"
                    return
            except FileExistsError:
                pass
            except FileNotFoundError as error:  # by whoever is at it, or the folder takes no files, as /proc
                missing = error
            self._close()
        raise missing or self._busy()

    def _open(self) -> bool:
        """Open, lock and mark the file. False: it was locked by somebody, or another file has the mark by now."""
        if not self._is_in_place:
            self.fd = self._place.open(self.mark, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            return self._lock()
        self.fd = self._place.open(self.name, os.O_RDWR)
        is_marked = False
        if not self._place.is_kept_by_sticky_bit(self.fd):  # it could not be removed again
            with contextlib.suppress(PermissionError):
                is_marked = self._place.link(self.name, self.mark)
        return self._lock() and (not is_marked or self._place.is_named(self.mark, self.fd))

    def _is_mine(self) -> bool:
        """Return whether the file that was opened and locked still stands where it did."""
        return self._place.is_named(self.name if self._is_in_place else self.mark, self.fd)

    def _take_over(self) -> None:
        """Keep others from using the file that exists; raise DeviceBusy if somebody does, and leave no mark then."""
        with contextlib.ExitStack() as undo:
            if not self.is_taken_up:
                undo.callback(self._place.unlink, self.mark, self.fd)
            if self._is_in_place:
                locks.acquire(self.fd, locks.WRITER, device=self._device)
                os.ftruncate(self.fd, 0)
            else:
                self._replaced_fd = self._place.open(self.name, os.O_RDONLY)
                self._replaced = os.fstat(self._replaced_fd)
                locks.acquire(self._replaced_fd, locks.WRITER, device=self._device)
            undo.pop_all()

    def _meet_stale(self, *, take_up: bool) -> bool:
        """Keep what a run before this one has left, or remove it; return whether it is open and locked now.

        Raises DeviceBusy if that run still goes on.
        """
        try:
            self.fd = self._place.open(self.mark, os.O_RDWR)
        except FileNotFoundError:
            return False
        if not self._lock():
            raise self._busy()
        is_in_place = self._place.is_named(self.name, self.fd)
        if is_in_place:  # or complete and never confirmed: whoever uses it has locked it
            locks.acquire(self.fd, locks.WRITER, device=self._device)
            locks.release(self.fd, pid=self._pid)
            if not self._lock():
                raise self._busy()
        if take_up and self._is_ours(2 if is_in_place else 1):
            return True
        if is_in_place:
            os.ftruncate(self.fd, 0)
        self._forget()
        return False

    def _forget(self) -> None:
        """Remove what a run before this one has left."""
        for name in (self.mark, folder.hidden_name(self.name, folder.SECOND_SUFFIX)):
            self._place.unlink(name, self.fd)
        self._close()
        self.is_taken_up = False

    def _is_ours(self, links: int) -> bool:
        """Return whether nobody else may read or write the file that was left, or has it under another name."""
        about = os.fstat(self.fd)
        is_private = links > 1 or not stat.S_IMODE(about.st_mode) & 0o077  # in place, somebody has prepared it
        return stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and about.st_nlink == links and is_private

    def begin_anew(self) -> None:
        """Drop what a run before this one has left in it."""
        if self.is_taken_up:
            self.is_taken_up = False
            os.ftruncate(self.fd, 0)

    def settle(self) -> None:
        """Have what is read from now on come from storage: what was written and is not there is no copy. Blocks."""
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _gone(self) -> OSError:
        return FileNotFoundError(errno.ENOENT, "it was removed or replaced while it was written")

    def _lock(self) -> bool:
        return locks.hold_being_made(self.fd)

    def _busy(self) -> errors.DeviceBusy:
        cause = f"another blkmig is writing {self._place.path / self.mark}"
        return errors.DeviceBusy("cannot be received", device=self._device, cause=cause)

    def reopen(self) -> int:
        """Return a descriptor of its own description: what that locks is free when it is closed."""
        fd = self._place.open(self.name if self._is_in_place else self.mark, os.O_RDWR)
        if os.path.samestat(os.fstat(fd), os.fstat(self.fd)):
            return fd
        os.close(fd)
        raise self._gone()

    # -- ending ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if the file that was made, its folder, or the one that it replaces, is not where it was."""
        self._place.check_is_there()
        if not self._is_mine():
            raise self._gone()
        there = self._place.stat(self.name)
        if not self._is_in_place and there is not None:
            if self._replaced is None:
                raise FileExistsError(errno.EEXIST, f"somebody else has made {self._place.path / self.name} meanwhile")
            if not os.path.samestat(there, self._replaced):
                raise FileExistsError(errno.EEXIST, "somebody else has replaced it meanwhile")

    def publish(self) -> None:
        """Give it its name; its contents are on stable storage, and `sync` brings the name there."""
        self.check()
        if self._replaced is not None:
            folder.look_like(self.fd, self._replaced)
        if not self._is_in_place:
            self._place.give_name(self.mark, self.name, replace=self._replaced is not None)
        self._state = "published"

    def unmark(self) -> None:
        """Remove the mark of what is handed over for good, once its name is on stable storage."""
        with contextlib.suppress(OSError):  # it has its name: `confirm` tries again, and raises
            self._place.unlink(self.mark, self.fd)

    def sync(self) -> None:
        """Return when the names of the folder are on stable storage: of many files, let all get theirs before."""
        self._place.sync()

    def about(self) -> sessionfile.Disk:
        """Return what a session file says of it."""
        real = Path(os.path.realpath(self._place.path), self.name)
        replaces = None if self._replaced is None else self._replaced.st_ino
        return sessionfile.Disk(str(real), inode=os.fstat(self.fd).st_ino, replaces=replaces)

    def keep(self) -> None:
        """Have `discard` leave it as it is, whatever its name: it may be the only owner's disk, or is to be resumed."""
        self._is_kept = True

    def confirm(self) -> bool:
        """Remove the mark: it is complete, and the other end knows. Return whether that has changed a name."""
        had_mark = False
        if self._state == "published":
            self._state = "gone"
            had_mark = self._place.unlink(self.mark, self.fd)
        self._close()
        return had_mark

    def discard(self, *, withdraw: bool) -> bool:
        """Leave nothing of it, unless it is to be kept, and an empty file empty again; return whether it was so.

        What is published stays, unless it is to be withdrawn; what has replaced another file always does.
        """
        state, self._state = self._state, "gone"
        try:
            if self._is_kept or self.is_taken_up:  # or it is as it was, or as good as that
                return False
            if state == "gone" or (state == "published" and (not withdraw or self._replaced is not None)):
                if state == "published":
                    self._place.unlink(self.mark, self.fd)
                return False
            if self._is_in_place:
                os.ftruncate(self.fd, 0)
            elif state == "published":
                self._place.unlink(self.name, self.fd)
            self._place.unlink(self.mark, self.fd)
            return True
        finally:
            self._close()

    def _close(self) -> None:
        fds, self.fd, self._replaced_fd = (self.fd, self._replaced_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                locks.close(fd, pid=self._pid)
